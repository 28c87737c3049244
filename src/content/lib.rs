//! Trees, layers and stores on disk: walking and hashing, reading engines' stores, the signature store.
//!
//! Bytes and structures out, no verdicts: what is found here is a claim until `verify` has judged it.
//! ```text
//! rootfs path ─store::locate▶ Found { claims, layers }         what the engine says it mounted
//! layers ─layer▶ (DiffId, Layer) ─verify::rootfs::merge▶ RootfsManifest ┐
//! rootfs descriptor ─tree::walk▶ Tree ──────────────────────────────────┴ verify::rootfs::compare
//!
//! or by the directories of its mount, which are sealed, so that unchanged ones are read once:
//! Stack ─seal▶ cache ─hit▶ CheckedLayers
//!          └────miss▶ tree::unpacked ─verify::rootfs::compare_layers▶ CheckedLayers ─▶ cache
//! and by a process of its own watched, so that unchanged ones need not even be sealed again: watch
//! ```

mod beneath; // opening and reading files below a directory descriptor
pub mod cache; // layers that were read before in this boot
mod inode; // one file, directory, device
pub mod layer; // a layer's archive, or its recording and directory, to what it holds
pub mod layout; // OCI image layouts and docker archives, for publishers
mod oci; // an OCI image layout's files
pub mod once; // files that were read for one purpose, for the next one
pub mod seal; // whether a directory is still what it was
pub mod sha; // which code hashes
pub mod signatures; // the signature store
pub mod stack; // the directories that an overlay mount lays over each other
pub mod store; // which image a rootfs was mounted from, by the engines' own stores
mod sys; // the system calls that rustix does not wrap
#[cfg(test)]
mod testkit;
pub mod tree; // a directory tree, walked by descriptors and hashed
mod trusted; // files that decisions rest on
pub mod watch; // layers that the kernel is asked to tell of

pub use beneath::{open_directory, read_bounded};
pub use sys::ignore_lease_signals;
pub use trusted::{MAX_TRUST_FILE, read_trusted, require_trusted_directory};
