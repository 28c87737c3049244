//! Random bytes of the operating system (getrandom(2)).

use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// `N` bytes. Waits, at early boot, until the kernel's generator is seeded.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    let mut filled = 0;
    while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_values_differ() {
        let a: [u8; 32] = super::bytes().unwrap();
        assert_ne!(a, super::bytes::<32>().unwrap());
        assert_ne!(a, [0; 32]);
    }
}
