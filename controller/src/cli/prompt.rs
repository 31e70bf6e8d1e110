//! Secrets that a person or a file gives.

use std::{
    fs::File,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The longest secret that is read, in bytes.
const MAX_SECRET: u64 = 8 * 1024;

/// Reads a secret from a file, without its last line feed; `-` is standard input.
pub(super) fn secret_file(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text)?;
    } else {
        File::open(path)?.take(MAX_SECRET).read_to_string(&mut text)?;
    }
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Asks for a passphrase at the terminal, which shows nothing of it; a fresh one twice. `None` without a terminal.
pub(super) fn passphrase(question: &str, fresh: bool) -> io::Result<Option<Zeroizing<String>>> {
    if !io::stderr().is_terminal() {
        return Ok(None);
    }
    let first = ask(question)?;
    if fresh && *first != *ask("The same again")? {
        return Err(io::Error::other("the two are not the same"));
    }
    Ok(Some(first))
}

fn ask(question: &str) -> io::Result<Zeroizing<String>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    write!(terminal, "{question}: ")?;
    let quiet = Quiet::begin(&terminal)?;
    let mut text = Zeroizing::new(String::new());
    let read = io::BufReader::new(&terminal).take(MAX_SECRET).read_line(&mut text);
    drop(quiet);
    writeln!(terminal)?;
    read.map(|_| Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Keeps the terminal from echoing until dropped.
struct Quiet<'a>(BorrowedFd<'a>, rustix::termios::Termios);

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd();
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // The terminal may be gone, and then there is nothing to restore.
        let _ = tcsetattr(self.0, OptionalActions::Flush, &self.1);
    }
}
