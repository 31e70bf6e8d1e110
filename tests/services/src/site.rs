//! Where a fixture lives, and the thread that keeps its processes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Where a fixture lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// A path that opens a network namespace, or the namespace this process is in.
    pub network: Option<PathBuf>,
    /// The address its services listen on, and are asked at.
    pub address: IpAddr,
    /// The folder below which the fixture makes its own, which then stays; the machine's folder of temporary files, and then
    /// it goes with the fixture, unless said.
    pub folder: Option<PathBuf>,
}

impl Default for Site {
    /// The loopback device of the namespace this process is in.
    fn default() -> Self {
        Self { network: None, address: Ipv4Addr::LOCALHOST.into(), folder: None }
    }
}

impl Site {
    /// An address in another network namespace, which `network` opens.
    pub fn in_network(network: impl Into<PathBuf>, address: IpAddr, folder: impl Into<PathBuf>) -> Self {
        Self { network: Some(network.into()), address, folder: Some(folder.into()) }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts a fixture's processes and is their parent: the kernel kills them when it ends, which is when
/// the keeper is dropped or the process ends. It lives at the fixture's site.
#[derive(Debug)]
pub(crate) struct Keeper {
    jobs: Mutex<mpsc::Sender<Option<Job>>>,
    thread: Option<JoinHandle<()>>,
    address: IpAddr,
    folder: PathBuf,
    janitor: Option<Child>,
}

impl Keeper {
    /// A keeper at `site`; `name` begins the name of its folder.
    pub(crate) fn new(site: &Site, name: &str) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(name);
        let (folder, janitor) = match &site.folder {
            Some(folder) => (builder.tempdir_in(folder)?.keep(), None),
            None => {
                let folder = builder.tempdir()?;
                let janitor = janitor(folder.path())?;
                (folder.keep(), Some(janitor))
            }
        };
        let (jobs, inbox) = mpsc::channel::<Option<Job>>();
        let network = site.network.clone();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let entered = network.as_deref().map_or(Ok(()), enter);
            let failed = entered.is_err();
            if ready.send(entered).is_err() || failed {
                return;
            }
            while let Ok(Some(job)) = inbox.recv() {
                job();
            }
        })?;
        is_ready.recv().context("the keeper's thread died")??;
        Ok(Self { jobs: Mutex::new(jobs), thread: Some(thread), address: site.address, folder, janitor })
    }

    /// Runs a closure at the site. A socket opened there stays there, wherever it is used.
    pub(crate) fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let (done, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = done.send(work());
        });
        let jobs = self.jobs.lock().map_err(|_| anyhow!("the keeper's thread panicked"))?;
        jobs.send(Some(job)).map_err(|_| anyhow!("the keeper's thread is gone"))?;
        drop(jobs);
        result.recv().context("the keeper's thread died")
    }

    /// Starts a process at the site.
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child> {
        let shown = format!("{command:?}");
        self.run(move || command.spawn())?.with_context(|| format!("cannot start {shown}"))
    }

    /// The address its services listen on.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// The fixture's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// An address of the site on which nothing listens.
    ///
    /// Ports are drawn from below the range the kernel gives to outgoing connections, so that none of those takes it
    /// before the service does.
    pub(crate) fn free(&self) -> Result<SocketAddr> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        const FIRST: u16 = 12_000;
        const COUNT: u16 = 20_000;
        let address = self.address;
        // Test processes that run side by side begin at different places.
        let start = (std::process::id().wrapping_mul(7_919) % u32::from(COUNT)) as u16;
        self.run(move || {
            for _ in 0..COUNT {
                let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
                let port = FIRST + (start + step) % COUNT;
                if TcpListener::bind((address, port)).is_ok() {
                    return Ok(SocketAddr::new(address, port));
                }
            }
            bail!("no port of {address} is free")
        })?
    }

    /// Puts a file system of `bytes` bytes at `folder`, seen by the keeper and its processes alone.
    pub(crate) fn small_disk(&self, folder: &Path, bytes: u64) -> Result<()> {
        let folder = folder.to_owned();
        self.run(move || {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .context("cannot make the mounts private")?;
            let size = format!("size={bytes},mode=0700");
            mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                .context("cannot mount a small disk")
        })?
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Ok(jobs) = self.jobs.lock() {
            let _ = jobs.send(None);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(janitor) = &mut self.janitor {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// Removes the folder when its pipe is closed: by the keeper, or by the end of this process, whatever ends it.
fn janitor(folder: &Path) -> Result<Child> {
    // It ends its reading when the pipe's other end is closed. What still writes is being killed at that moment.
    let script =
        r#"cat >/dev/null; for n in 1 2 3 4 5 6 7 8 9; do rm -rf "$0" 2>/dev/null && exit; sleep 0.1; done"#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The terminal's interrupt is for the tests.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.current_dir("/").spawn().context("cannot start sh")
}

fn enter(network: &Path) -> Result<()> {
    let shown = network.display();
    let file = std::fs::File::open(network).with_context(|| format!("cannot open {shown}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot enter {shown}"))
}
