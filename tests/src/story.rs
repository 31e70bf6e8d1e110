//! What demonstrations tell, step by step, on the terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::table;
use crate::lab::{Lab, Privilege, become_lab_root};

/// Becomes root of a lab, says so under `title`, and tells `story`; ends as the demonstration's program does.
pub fn tell(title: &str, story: impl FnOnce(&mut Steps, &mut Lab) -> Result<()>) -> ExitCode {
    match run(title, story) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("\nThe demo could not run: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(title: &str, story: impl FnOnce(&mut Steps, &mut Lab) -> Result<()>) -> Result<bool> {
    let how = match become_lab_root()? {
        Privilege::Root => "as root",
        Privilege::UserNamespace => "without root, in a user namespace",
    };
    say(&format!(
        "Horizon, {how}. Everything happens in network namespaces of this process; the machine is not touched.\n\n{title}"
    ));
    let mut steps = Steps::default();
    let mut lab = Lab::new()?;
    let outcome = story(&mut steps, &mut lab);
    say(&format!("\n{}", steps.table()));
    if let Err(error) = outcome {
        say(&format!("Not so: {error:#}\n\nThe logs of every program are in {}", lab.keep_logs().display()));
        return Ok(false);
    }
    say(&format!("All {} steps held, in {}.", steps.done.len(), seconds(steps.begin.elapsed())));
    Ok(true)
}

/// The steps so far, with what each proved.
pub struct Steps {
    begin: Instant,
    done: Vec<[String; 3]>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { begin: Instant::now(), done: Vec::new() }
    }
}

/// What a step proved, in words, and what the next ones need of it.
pub type Proven<T> = (String, T);

/// A step's outcome: what it proved, and what the next ones need of it.
pub fn proven<T>(what: impl Into<String>, value: T) -> Result<Proven<T>> {
    Ok((what.into(), value))
}

impl Steps {
    /// Acts, and says what that proved and how long it took.
    pub fn step<T>(&mut self, name: &str, act: impl FnOnce() -> Result<Proven<T>>) -> Result<T> {
        progress(&format!("  … {name}"));
        let begin = Instant::now();
        let outcome = act();
        let time = seconds(begin.elapsed());
        let (mark, what) = match &outcome {
            Ok((what, _)) => ("✓", what.clone()),
            Err(_) => ("✗", "NOT SO".to_owned()),
        };
        say(&format!("\r  {mark} {name}: {what} ({time})"));
        self.done.push([name.to_owned(), what, time]);
        outcome.map(|(_, value)| value).with_context(|| name.to_owned())
    }

    fn table(&self) -> String {
        let head = ["step", "proven", "time"].map(str::to_owned);
        table(&std::iter::once(head).chain(self.done.iter().cloned()).collect::<Vec<_>>())
    }
}

/// How long something takes.
pub fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed())
}

/// A time for people.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Shows what is being done, where the line can be replaced afterwards.
fn progress(line: &str) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let _ = write!(out, "{line}");
        let _ = out.flush();
    }
}
