//! The kernel's own word on a container's list: a keyring per container that takes no certificate but one
//! whose chain leads to the user CA (keyrings(7), "key_or_keyring:…:chain"), and the list's signature
//! verified by the kernel's crypto.
//!
//! It hangs in the keeper's session keyring, so it ends with the keeper whatever happens. It is a second
//! opinion: a kernel that cannot give one is named, a kernel that disagrees ends the container.

mod sys;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use std::ffi::CString;
use sys::Serial;
use verify::{
    cms::Proof,
    event::{KernelCheck, KernelKeys},
    id::ContainerId,
};

/// Possessors (keeper, guard, and the vTPM, which a container could have subverted) may look and search;
/// root may also take it away. See keyctl_setperm(3).
const LOOK_ONLY: u32 = 0x0b2b_0000;
/// Of the session keyring: the same, and root may link and unlink.
const SESSION: u32 = 0x0b3f_0000;

/// For the keeper, before its guard is made: a session keyring of its own, not its caller's.
pub fn begin_session() -> Result<()> {
    match sys::join_new_session() {
        Ok(()) => {
            sys::set_permissions(sys::SESSION, SESSION).context("cannot guard the session keyring")
        }
        // said again, by name, when a key is to be kept
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        Err(error) => Err(error).context("cannot make a session keyring"),
    }
}

const NO_SIGNATURES: &str = "this kernel verifies no signatures of its signer's kind";

/// What the kernel did; revoked and unlinked when dropped.
#[derive(Debug)]
pub enum Retained {
    Kept {
        _ring: Ring,
        checked: Checked,
    },
    /// This kernel cannot: why.
    Unsupported(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    ChainAndSignature,
    /// The kernel verifies certificates with this key's algorithm, and no signatures for others.
    Chain,
}

impl Retained {
    /// For challengers, measured.
    pub fn event(&self) -> KernelKeys {
        let (checked, why) = match self {
            Self::Kept { checked, .. } => match checked {
                Checked::ChainAndSignature => (KernelCheck::Signature, ""),
                Checked::Chain => (KernelCheck::Chain, NO_SIGNATURES),
            },
            Self::Unsupported(why) => (KernelCheck::None, why.as_str()),
        };
        KernelKeys {
            checked,
            why: why.to_owned(),
        }
    }

    /// For people, in `state`.
    pub fn said(&self) -> String {
        match self {
            Self::Kept { checked, .. } => match checked {
                Checked::ChainAndSignature => "chain and signature checked".to_owned(),
                Checked::Chain => format!("chain checked; {NO_SIGNATURES}"),
            },
            Self::Unsupported(why) => format!("not checked: {why}"),
        }
    }
}

/// A keyring of this process's session.
#[derive(Debug)]
pub struct Ring(Serial);

impl Ring {
    fn make(name: &str) -> Result<Self, Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        sys::new_ring(&name, sys::SESSION).map(Self)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // a keyring that is gone already needs neither
        sys::revoke(self.0).ok();
        sys::unlink(self.0, sys::SESSION).ok();
    }
}

/// Has the kernel check the chain and the signature behind a container's list, and keeps the certificate
/// for as long as the result lives.
pub fn retain(proof: &Proof, container: &ContainerId, mount_namespace: u64) -> Result<Retained> {
    let name = format!("attestrun:{container}:mnt:{mount_namespace}");
    match kept(proof, &name) {
        Ok((ring, checked)) => Ok(Retained::Kept {
            _ring: ring,
            checked,
        }),
        Err(Failure::Unsupported(why)) => Ok(Retained::Unsupported(why)),
        Err(Failure::Disagrees(what, error)) => {
            bail!("the kernel does not accept {what}, which was verified here: {error}")
        }
    }
}

enum Failure {
    Unsupported(String),
    Disagrees(&'static str, Errno),
}

fn kept(proof: &Proof, name: &str) -> Result<(Ring, Checked), Failure> {
    let ring = |name: &str| {
        Ring::make(name).map_err(|error| match error {
            // a machine within a container, whose filter forbids keyrings
            Errno::PERM => Failure::Unsupported("keyrings are not permitted here".to_owned()),
            other => judged("the keyring", other),
        })
    };
    // needed only while chains are checked: the certificates behind it stay in the container's
    let authority = ring(&format!("{name}:user-ca"))?;
    let ring = ring(name)?;
    let what = "the user CA's certificate";
    sys::add_certificate(proof.root(), authority.0).map_err(|e| judged(what, e))?;
    let rule = CString::new(format!("key_or_keyring:{}:chain", authority.0));
    let rule = rule.map_err(|_| Failure::Disagrees("the keyring", Errno::INVAL))?;
    sys::restrict(ring.0, &rule).map_err(|e| judged("the keyring's restriction", e))?;
    let mut last = None;
    for certificate in proof.chain() {
        let added = sys::add_certificate(certificate, ring.0);
        last = Some(added.map_err(|e| judged("a certificate of the list's signer", e))?);
    }
    let key = last.ok_or(Failure::Disagrees(
        "a chain of no certificates",
        Errno::INVAL,
    ))?;
    let raw = proof.p1363();
    let (encoding, signature) = match &raw {
        // since Linux 6.13; of "x962" it takes none, all being longer than the longest digest
        // (security/keys/keyctl_pkey.c)
        Some(raw) => (c"enc=p1363 hash=sha256", &raw[..]),
        None => (c"enc=pkcs1 hash=sha256", proof.signature()),
    };
    let checked = match sys::verify(key, encoding, proof.digest(), signature) {
        Ok(()) => Checked::ChainAndSignature,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOPKG) => Checked::Chain,
        // an encoding that it does not know
        Err(Errno::INVAL) if raw.is_some() => Checked::Chain,
        Err(error) => return Err(Failure::Disagrees("the list's signature", error)),
    };
    sys::set_permissions(ring.0, LOOK_ONLY).map_err(|e| judged("the keyring", e))?;
    Ok((ring, checked))
}

/// A kernel that lacks something, or one that says no.
fn judged(what: &'static str, error: Errno) -> Failure {
    match error {
        Errno::NOSYS => Failure::Unsupported("this kernel has no keyrings".to_owned()),
        Errno::NODEV => Failure::Unsupported("this kernel has no asymmetric keys".to_owned()),
        // crypto/asymmetric_keys: an algorithm that is not built in
        Errno::NOPKG | Errno::NOENT => {
            Failure::Unsupported(format!("this kernel lacks the algorithm of {what}"))
        }
        // somebody else's keys, or a container's own: nothing that says anything about this chain
        Errno::DQUOT | Errno::NOMEM => Failure::Unsupported(format!("no room for {what}: {error}")),
        other => Failure::Disagrees(what, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn listed(name: &str) -> usize {
        let keys = std::fs::read_to_string("/proc/keys").unwrap();
        keys.lines().filter(|line| line.contains(name)).count()
    }

    /// A thread has a session keyring of its own if it asks.
    #[test]
    fn nothing_is_left_of_a_thousand_keyrings() {
        begin_session().unwrap();
        let name = format!("attestrun-test-{}", std::process::id());
        for number in 0..1000 {
            let ring = match Ring::make(&format!("{name}-{number}")) {
                Err(Errno::NOSYS) => return,
                made => made.unwrap(),
            };
            sys::set_permissions(ring.0, LOOK_ONLY).unwrap();
            if number == 0 {
                assert_eq!(listed(&name), 1);
            }
        }
        // the kernel's collector takes a moment
        let end = Instant::now() + Duration::from_secs(20);
        while listed(&name) > 0 {
            assert!(Instant::now() < end, "{} are left", listed(&name));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn a_kernel_that_cannot_is_not_one_that_disagrees() {
        for cannot in [Errno::NOSYS, Errno::NODEV, Errno::NOPKG, Errno::NOENT] {
            assert!(
                matches!(judged("it", cannot), Failure::Unsupported(_)),
                "{cannot}"
            );
        }
        for no in [Errno::KEYREJECTED, Errno::NOKEY, Errno::BADMSG, Errno::PERM] {
            assert!(matches!(judged("it", no), Failure::Disagrees(..)), "{no}");
        }
        // what a certificate of another CA meets at a restricted keyring
        begin_session().unwrap();
        let rings = || {
            Ok((
                Ring::make("attestrun-test-ca")?,
                Ring::make("attestrun-test")?,
            ))
        };
        let (authority, ring) = match rings() {
            Err(Errno::NOSYS) => return,
            made => made.unwrap(),
        };
        let rule = CString::new(format!("key_or_keyring:{}:chain", authority.0)).unwrap();
        sys::restrict(ring.0, &rule).unwrap();
        assert!(sys::add_certificate(b"no certificate", ring.0).is_err());
    }
}
