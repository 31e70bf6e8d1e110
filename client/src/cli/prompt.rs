//! Questions to a person at a terminal.

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The longest secret that is read, in bytes; longer than any key.
const MAX_SECRET: u64 = 8 * 1024;

/// Reads a secret: from a prompt that shows nothing of it, or from standard input when that is no terminal.
pub(super) fn secret(question: &str) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_SECRET).read_to_string(&mut text)?;
        return Ok(text);
    }
    write!(io::stderr(), "{question}: ")?;
    let quiet = Quiet::begin(&stdin)?;
    let read = stdin.lock().take(MAX_SECRET).read_line(&mut text);
    drop(quiet);
    writeln!(io::stderr())?;
    read.map(|_| text)
}

/// Asks for a passphrase at the terminal; a fresh one twice.
pub(super) fn passphrase(fresh: bool) -> io::Result<Zeroizing<String>> {
    let ask = |question: &str| -> io::Result<Zeroizing<String>> {
        let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        write!(terminal, "{question}: ")?;
        let quiet = Quiet::begin(&terminal)?;
        let mut text = Zeroizing::new(String::new());
        let read = io::BufReader::new(&terminal).take(MAX_SECRET).read_line(&mut text);
        drop(quiet);
        writeln!(terminal)?;
        read.map(|_| Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    };
    let first = ask("Passphrase of the key file (not shown)")?;
    if fresh && *first != *ask("The same again")? {
        return Err(io::Error::other("the two are not the same"));
    }
    Ok(first)
}

/// Asks for a line at the terminal, which may be seen.
pub(super) fn line(question: &str) -> io::Result<String> {
    let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    write!(terminal, "{question}: ")?;
    let mut text = String::new();
    io::BufReader::new(&terminal).take(MAX_SECRET).read_line(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Asks for a yes; anything else, and no terminal, is a no.
pub(super) fn yes(question: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().take(64).read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
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
