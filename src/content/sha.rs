//! Which code hashes here.

/// How the `sha2` crate computes SHA-256 on this machine: it asks the processor as this does
/// (`sha2::sha256::x86`), and knows no other processor's instructions.
pub fn implementation() -> &'static str {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("sse2")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
    {
        return SHA_NI;
    }
    SOFTWARE
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
const SHA_NI: &str = "SHA-NI, the processor's own instructions";
const SOFTWARE: &str = "software: this processor has no SHA-NI";

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel says, by another way to the same processor.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_kernel_says_the_same() {
        let said = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = said.lines().find(|line| line.starts_with("flags")).unwrap();
        let has = flags.split_whitespace().any(|flag| flag == "sha_ni");
        assert_eq!(implementation() == SHA_NI, has);
    }
}
