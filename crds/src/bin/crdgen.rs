//! Writes the generated files: the CustomResourceDefinitions and the reference page. With `--check` it writes nothing and
//! fails when one of them is not current.

use std::{env, fs, io::Write, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Nothing is left to do when stderr is closed.
            let _ = writeln!(std::io::stderr(), "crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return Err("usage: crdgen [--check]".into()),
    };
    let package =
        env::var_os("CARGO_MANIFEST_DIR").ok_or("run it with `cargo run -p horizon-crds --bin crdgen`")?;
    let root = PathBuf::from(package).join("..");
    let mut stale = Vec::new();
    for (path, text) in horizon_crds::generated_files().map_err(|error| error.to_string())? {
        let file = root.join(&path);
        if fs::read_to_string(&file).is_ok_and(|current| current == text) {
            continue;
        }
        if check {
            stale.push(path);
            continue;
        }
        let folder = file.parent().ok_or_else(|| format!("{path} is in no folder"))?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, text))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("not current: {}; run `cargo run -p horizon-crds --bin crdgen`", stale.join(", ")))
}
