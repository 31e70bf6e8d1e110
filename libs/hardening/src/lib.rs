//! What a program that holds secrets does before it starts: its memory reaches neither a core dump nor the swap, it gains no
//! rights, and it gives up those that it does not need. To be called before there are threads: they inherit all of it.

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// The highest number of a capability that may come to be.
const CAPABILITIES: u32 = 64;

/// What a program needs of the rights of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Files of its own, and a port below 1024 where it is told to.
    Controller,
    /// The same, and the network of its host.
    Appliance,
    /// The same as an appliance: it gives its socket to a user.
    Client,
}

impl Program {
    fn keeps(self) -> CapabilitySet {
        // Whoever runs it as root may have files of others for it.
        let files = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        let own = files | CapabilitySet::NET_BIND_SERVICE;
        match self {
            Self::Controller => own,
            Self::Appliance | Self::Client => own | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
        }
    }
}

/// What came of it. What the system does not allow is left as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hardened {
    /// No core dump shows its memory, and no other process of the same user reads it.
    pub no_dumps: bool,
    /// Nothing that it starts has more rights than itself.
    pub no_new_privileges: bool,
    /// It has no rights but those it needs.
    pub dropped: bool,
    /// Its memory is never written to the swap.
    pub locked: bool,
}

/// Does what the system allows.
pub fn harden(program: Program) -> Hardened {
    Hardened {
        no_dumps: no_dumps().is_ok(),
        no_new_privileges: set_no_new_privs(true).is_ok(),
        // Before the rights are given up that allow it.
        locked: lock_memory(),
        dropped: drop_capabilities(program.keeps()).is_ok(),
    }
}

fn no_dumps() -> Result<(), Errno> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn drop_capabilities(keeps: CapabilitySet) -> Result<(), Errno> {
    // What a child would get back by being root's. Without the right to, there is nothing to get back either.
    for number in 0..CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !keeps.contains(one) {
            match remove_capability_from_bounding_set(one) {
                // One that this kernel does not know, or without the right to.
                Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    match clear_ambient_capability_set() {
        // Where the ambient ones are all there are, those that are kept are in the permitted set too.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let has = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: has.effective & keeps,
            permitted: has.permitted & keeps,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Locks what is and what comes, as it is touched. Only where there is no bound: within one, the program would fail for want
/// of memory once it grew.
fn lock_memory() -> bool {
    let without = Rlimit { current: None, maximum: None };
    // Root may lift the bound; anybody else is told by their service manager (LimitMEMLOCK=infinity).
    let _ = setrlimit(Resource::Memlock, without);
    if getrlimit(Resource::Memlock).current.is_some() {
        return false;
    }
    lock_all()
}

#[allow(unsafe_code, reason = "the call has no safe face among the libraries in use")]
fn lock_all() -> bool {
    // SAFETY: the call takes no pointers, and changes nothing but where pages may be.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) == 0 }
}
