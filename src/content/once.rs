//! Files whose content was read for one purpose, so that it needs not be read for the next: while a
//! layer's archive is put together again from its directory, each file is hashed for itself as well.
//!
//! A file counts as read only while its inode has the stamp that it had before and after the reading
//! (`crate::seal` says why a stamp is believed), and only when its last change lies so far back that a
//! later one has another time. Whatever else stands at a name is read again.

use crate::seal::{self, Moment};
use rustix::fs::Stat;
use std::collections::HashMap;
use verify::rootfs::Entry;

/// By device and inode, so that every name of a file is known by one reading.
#[derive(Debug, Default)]
pub struct FilesRead(HashMap<(u64, u64), FileRead>);

#[derive(Debug)]
struct FileRead {
    stamp: seal::Stamp,
    entry: Entry,
    quiet: bool,
}

impl FilesRead {
    /// `stat`: as it was before and after the reading, which began no earlier than `began`.
    pub(crate) fn add(&mut self, stat: &Stat, began: Moment, entry: Entry, quiet: bool) {
        if seal::long_settled(stat, began) {
            let stamp = seal::stamp(stat);
            let read = FileRead {
                stamp,
                entry,
                quiet,
            };
            self.0.insert((stat.st_dev, stat.st_ino), read);
        }
    }

    /// What was read of the file that has this stamp now; true: nobody had it open for writing then.
    pub(crate) fn get(&self, stat: &Stat) -> Option<(&Entry, bool)> {
        let read = self.0.get(&(stat.st_dev, stat.st_ino))?;
        (read.stamp == seal::stamp(stat)).then_some((&read.entry, read.quiet))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn append(&mut self, other: Self) {
        match self.0.is_empty() {
            true => *self = other,
            false => self.0.extend(other.0),
        }
    }
}
