//! keyctl(2) and add_key(2), which neither nix nor rustix wrap.
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::{
    ffi::{CStr, c_long},
    ptr::null,
};

/// A key's serial number (key_serial_t).
pub type Serial = i32;
/// KEY_SPEC_SESSION_KEYRING.
pub const SESSION: Serial = -3;

const JOIN_SESSION_KEYRING: c_long = 1;
const REVOKE: c_long = 3;
const SETPERM: c_long = 5;
const UNLINK: c_long = 9;
const PKEY_VERIFY: c_long = 28;
const RESTRICT_KEYRING: c_long = 29;

fn check(result: c_long) -> Result<c_long, Errno> {
    match result {
        0.. => Ok(result),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn serial(result: c_long) -> Result<Serial, Errno> {
    Serial::try_from(check(result)?).map_err(|_| Errno::OVERFLOW)
}

/// A new session keyring without a name for this process and its children.
pub fn join_new_session() -> Result<(), Errno> {
    let name: *const u8 = null();
    // SAFETY: without a name the kernel reads nothing.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name) }).map(drop)
}

pub fn new_ring(name: &CStr, parent: Serial) -> Result<Serial, Errno> {
    add(c"keyring", name, &[], parent)
}

/// An X.509 certificate, DER; the kernel describes the key itself.
pub fn add_certificate(der: &[u8], ring: Serial) -> Result<Serial, Errno> {
    add(c"asymmetric", c"", der, ring)
}

fn add(kind: &CStr, name: &CStr, payload: &[u8], ring: Serial) -> Result<Serial, Errno> {
    let bytes = match payload {
        [] => null(),
        some => some.as_ptr(),
    };
    // SAFETY: the kernel reads two C strings and as many bytes as it is told.
    serial(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            name.as_ptr(),
            bytes,
            payload.len(),
            ring,
        )
    })
}

/// From now on the keyring takes asymmetric keys by this rule alone.
pub fn restrict(ring: Serial, rule: &CStr) -> Result<(), Errno> {
    let kind = c"asymmetric".as_ptr();
    // SAFETY: the kernel reads two C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            RESTRICT_KEYRING,
            ring,
            kind,
            rule.as_ptr(),
        )
    })
    .map(drop)
}

/// A signature in this encoding over a SHA-256 digest; not every key has such an operation.
pub fn verify(
    key: Serial,
    encoding: &CStr,
    digest: &[u8; 32],
    signature: &[u8],
) -> Result<(), Errno> {
    /// linux/keyctl.h, struct keyctl_pkey_params.
    #[repr(C)]
    struct Params {
        key: Serial,
        digest: u32,
        signature: u32,
        spare: [u32; 7],
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| Errno::INVAL);
    let params = Params {
        key,
        digest: length(digest)?,
        signature: length(signature)?,
        spare: [0; 7],
    };
    // SAFETY: the kernel reads the structure, a C string, and two buffers of the lengths in it.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            PKEY_VERIFY,
            &params,
            encoding.as_ptr(),
            digest.as_ptr(),
            signature.as_ptr(),
        )
    })
    .map(drop)
}

pub fn set_permissions(key: Serial, mask: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, key, mask) }).map(drop)
}

pub fn revoke(key: Serial) -> Result<(), Errno> {
    // SAFETY: a number only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, REVOKE, key) }).map(drop)
}

pub fn unlink(key: Serial, ring: Serial) -> Result<(), Errno> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, UNLINK, key, ring) }).map(drop)
}
