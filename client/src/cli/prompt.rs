//! Questions to a person at a terminal.

use std::io::{self, BufRead, IsTerminal, Read, Write};

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
    let quiet = Quiet::begin()?;
    let read = stdin.lock().take(MAX_SECRET).read_line(&mut text);
    drop(quiet);
    writeln!(io::stderr())?;
    read.map(|_| text)
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
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // The terminal may be gone, and then there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
