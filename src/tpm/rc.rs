//! TPM response codes in words (TPM 2.0 Library Part 2, 6.6; TSS 2.0 Overview, "Return codes").

use std::fmt;

/// A response code, never zero in an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rc(u32);

/// Format-one codes: bit 7 set; bits 0 to 5 say what, bits 6 and 8 to 11 say where.
const FORMAT_ONE: u32 = 0x080;
/// Format-zero codes of TPM 2.0 have this bit; without it, a lower layer of the TSS speaks.
const VERSION_2: u32 = 0x100;
const WARNING: u32 = 0x800;
const PARAMETER: u32 = 0x040;

const NAMES_ONE: &[(u32, &str, &str)] = &[
    (0x01, "ASYMMETRIC", "asymmetric algorithm not supported"),
    (0x02, "ATTRIBUTES", "inconsistent attributes"),
    (0x03, "HASH", "hash algorithm not supported"),
    (0x04, "VALUE", "value out of range"),
    (
        0x05,
        "HIERARCHY",
        "hierarchy is not enabled, or not the right one",
    ),
    (0x07, "KEY_SIZE", "key size not supported"),
    (0x08, "MGF", "mask generation function not supported"),
    (0x09, "MODE", "mode of operation not supported"),
    (0x0A, "TYPE", "type of the value is not appropriate"),
    (0x0B, "HANDLE", "the handle is not correct for the use"),
    (0x0C, "KDF", "key derivation function not supported"),
    (0x0D, "RANGE", "value was out of allowed range"),
    (
        0x0E,
        "AUTH_FAIL",
        "authorization failed, and counts towards the dictionary attack lockout",
    ),
    (0x0F, "NONCE", "invalid nonce size or nonce value"),
    (0x10, "PP", "authorization requires physical presence"),
    (0x12, "SCHEME", "unsupported or incompatible scheme"),
    (0x15, "SIZE", "structure is the wrong size"),
    (
        0x16,
        "SYMMETRIC",
        "unsupported symmetric algorithm or key size",
    ),
    (0x17, "TAG", "incorrect structure tag"),
    (0x18, "SELECTOR", "union selector is incorrect"),
    (
        0x1A,
        "INSUFFICIENT",
        "there are not enough bytes to unmarshal a value",
    ),
    (0x1B, "SIGNATURE", "the signature is not valid"),
    (
        0x1C,
        "KEY",
        "key fields are not compatible with the selected use",
    ),
    (0x1D, "POLICY_FAIL", "a policy check failed"),
    (0x1F, "INTEGRITY", "integrity check failed"),
    (0x20, "TICKET", "invalid ticket"),
    (0x21, "RESERVED_BITS", "reserved bits are not zero"),
    (0x22, "BAD_AUTH", "wrong authorization value"),
    (0x23, "EXPIRED", "the policy has expired"),
    (
        0x24,
        "POLICY_CC",
        "the command is not the one of the policy",
    ),
    (
        0x25,
        "BINDING",
        "public and sensitive parts do not belong together, or not to this parent",
    ),
    (0x26, "CURVE", "curve not supported"),
    (0x27, "ECC_POINT", "point is not on the curve"),
];

const NAMES_ZERO: &[(u32, &str, &str)] = &[
    (
        0x100,
        "INITIALIZE",
        "the TPM has not been started, or has been already",
    ),
    (0x101, "FAILURE", "the TPM is in failure mode"),
    (0x103, "SEQUENCE", "improper use of a sequence handle"),
    (0x119, "DISABLED", "the command is disabled"),
    (
        0x120,
        "EXCLUSIVE",
        "the audit sequence required exclusivity",
    ),
    (
        0x124,
        "AUTH_TYPE",
        "the authorization handle is not correct for the command",
    ),
    (
        0x125,
        "AUTH_MISSING",
        "the command requires an authorization session",
    ),
    (0x126, "POLICY", "invalid authorization policy"),
    (0x127, "PCR", "PCR check failed"),
    (
        0x128,
        "PCR_CHANGED",
        "PCRs have changed since they were checked",
    ),
    (0x12D, "UPGRADE", "the TPM is in field upgrade mode"),
    (
        0x12E,
        "TOO_MANY_CONTEXTS",
        "context counter is at its maximum",
    ),
    (
        0x12F,
        "AUTH_UNAVAILABLE",
        "no authorization of this kind is available for the entity",
    ),
    (
        0x130,
        "REBOOT",
        "the machine must be restarted before the TPM works again",
    ),
    (
        0x142,
        "COMMAND_SIZE",
        "the command's size does not fit its content",
    ),
    (0x143, "COMMAND_CODE", "command not supported"),
    (0x144, "AUTHSIZE", "the authorization area has a wrong size"),
    (
        0x145,
        "AUTH_CONTEXT",
        "the command cannot have an authorization session",
    ),
    (0x146, "NV_RANGE", "NV offset and size are out of range"),
    (0x147, "NV_SIZE", "NV allocation too large"),
    (0x148, "NV_LOCKED", "NV access locked"),
    (0x149, "NV_AUTHORIZATION", "NV access not authorized"),
    (
        0x14A,
        "NV_UNINITIALIZED",
        "NV index used before it was written",
    ),
    (0x14B, "NV_SPACE", "no space for the NV index"),
    (
        0x14C,
        "NV_DEFINED",
        "NV index or persistent object exists already",
    ),
    (0x150, "BAD_CONTEXT", "the saved context is not valid"),
    (0x152, "PARENT", "the handle is not a valid parent"),
    (0x153, "NEEDS_TEST", "a function needs testing"),
    (
        0x154,
        "NO_RESULT",
        "an internal function could not process the request",
    ),
    (0x155, "SENSITIVE", "the sensitive area did not unmarshal"),
    (
        0x901,
        "CONTEXT_GAP",
        "gap between context identifiers is too large",
    ),
    (0x902, "OBJECT_MEMORY", "no room for another loaded object"),
    (
        0x903,
        "SESSION_MEMORY",
        "no room for another loaded session",
    ),
    (0x904, "MEMORY", "out of memory"),
    (0x905, "SESSION_HANDLES", "no session handle is free"),
    (0x906, "OBJECT_HANDLES", "no object handle is free"),
    (0x907, "LOCALITY", "not allowed at this locality"),
    (0x908, "YIELDED", "the TPM has suspended the command"),
    (0x909, "CANCELED", "the command was cancelled"),
    (0x90A, "TESTING", "the TPM is testing itself"),
    (0x910, "REFERENCE_H0", "the first handle is not loaded"),
    (0x911, "REFERENCE_H1", "the second handle is not loaded"),
    (0x918, "REFERENCE_S0", "the first session is not loaded"),
    (0x919, "REFERENCE_S1", "the second session is not loaded"),
    (
        0x920,
        "NV_RATE",
        "the TPM limits writes to protect its memory from wear",
    ),
    (0x921, "LOCKOUT", "the TPM is in dictionary attack lockout"),
    (0x922, "RETRY", "the TPM could not start the command now"),
    (
        0x923,
        "NV_UNAVAILABLE",
        "the TPM's memory is not accessible now",
    ),
];

/// Base codes of the layers above the TPM (bits 16 to 23 name the layer).
const NAMES_TSS: &[(u32, &str, &str)] = &[
    (0x01, "GENERAL_FAILURE", "general failure"),
    (0x02, "NOT_IMPLEMENTED", "not implemented"),
    (0x03, "BAD_CONTEXT", "bad context"),
    (0x04, "ABI_MISMATCH", "libraries of different versions"),
    (0x05, "BAD_REFERENCE", "bad reference"),
    (0x06, "INSUFFICIENT_BUFFER", "buffer too small"),
    (0x07, "BAD_SEQUENCE", "called in the wrong order"),
    (0x08, "NO_CONNECTION", "no connection to the TPM"),
    (0x09, "TRY_AGAIN", "the TPM is busy"),
    (
        0x0A,
        "IO_ERROR",
        "input/output error between the library and the TPM",
    ),
    (0x0B, "BAD_VALUE", "bad value"),
    (0x0C, "NOT_PERMITTED", "not permitted"),
    (0x10, "MALFORMED_RESPONSE", "malformed response"),
    (0x17, "NO_TPM", "no TPM"),
];

impl Rc {
    pub const fn new(code: u32) -> Self {
        Self(code)
    }
    pub const fn code(self) -> u32 {
        self.0
    }
    /// The TPM asks to send the same command again (YIELDED, TESTING, RETRY).
    pub const fn asks_for_retry(self) -> bool {
        matches!(self.0 & 0xFFF, 0x908 | 0x90A | 0x922)
    }
    pub const fn is_lockout(self) -> bool {
        self.0 & 0xFFF == 0x921
    }
    /// A wrong authorization value, whether it counts towards the lockout or not.
    pub const fn is_wrong_auth(self) -> bool {
        self.0 & FORMAT_ONE != 0 && matches!(self.0 & 0x3F, 0x0E | 0x22)
    }
    /// PCRs were extended after a policy had looked at them.
    pub const fn is_pcr_changed(self) -> bool {
        self.0 == 0x128
    }
    /// A session's policy is not the object's.
    pub const fn is_policy_fail(self) -> bool {
        self.0 & FORMAT_ONE != 0 && self.0 & 0x3F == 0x1D
    }
    /// What was wrapped is not for the key that is to unwrap it, or was changed.
    pub const fn is_integrity(self) -> bool {
        self.0 & FORMAT_ONE != 0 && self.0 & 0x3F == 0x1F
    }
    /// The name in the specification, without `TPM_RC_`.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|(_, name, _)| *name)
    }

    fn entry(self) -> Option<&'static (u32, &'static str, &'static str)> {
        let (table, code) = if self.0 & FORMAT_ONE != 0 {
            (NAMES_ONE, self.0 & 0x3F)
        } else if self.0 & (VERSION_2 | WARNING) != 0 {
            (NAMES_ZERO, self.0 & 0xFFF)
        } else {
            (NAMES_TSS, self.0 & 0xFFF)
        };
        table.iter().find(|(value, _, _)| *value == code)
    }

    /// Which argument a format-one code blames.
    fn place(self) -> Option<String> {
        if self.0 & FORMAT_ONE == 0 {
            return None;
        }
        let number = (self.0 >> 8) & 0xF;
        let (kind, number) = match (self.0 & PARAMETER != 0, number) {
            (_, 0) => return None,
            (true, n) => ("parameter", n),
            (false, n) if n & 0x8 != 0 => ("session", n & 0x7),
            (false, n) => ("handle", n),
        };
        Some(format!("{kind} {number}"))
    }
}

impl fmt::Display for Rc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, words)) => write!(f, "{words} ({name}, {:#x}", self.0)?,
            None => write!(f, "unknown response code ({:#x}", self.0)?,
        }
        match self.place() {
            Some(place) => write!(f, ", {place})"),
            None => f.write_str(")"),
        }
    }
}

impl fmt::Debug for Rc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rc({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_as_words() {
        for (code, text) in [
            (
                0x98e,
                "authorization failed, and counts towards the dictionary attack lockout (AUTH_FAIL, 0x98e, session 1)",
            ),
            (
                0x9a2,
                "wrong authorization value (BAD_AUTH, 0x9a2, session 1)",
            ),
            (
                0x185,
                "hierarchy is not enabled, or not the right one (HIERARCHY, 0x185, handle 1)",
            ),
            (0x2c4, "value out of range (VALUE, 0x2c4, parameter 2)"),
            (0x101, "the TPM is in failure mode (FAILURE, 0x101)"),
            (
                0x922,
                "the TPM could not start the command now (RETRY, 0x922)",
            ),
            (
                0xa000a,
                "input/output error between the library and the TPM (IO_ERROR, 0xa000a)",
            ),
            (0x13f, "unknown response code (0x13f)"),
        ] {
            assert_eq!(Rc::new(code).to_string(), text);
        }
    }

    #[test]
    fn classes() {
        for code in [0x908, 0x90a, 0x922] {
            assert!(Rc::new(code).asks_for_retry());
        }
        // CANCELED is not a request to try again; 0x1a2 is format one.
        for code in [0, 0x909, 0x921, 0x1a2] {
            assert!(!Rc::new(code).asks_for_retry());
        }
        assert!(Rc::new(0x921).is_lockout());
        assert!(Rc::new(0x98e).is_wrong_auth());
        assert!(Rc::new(0x9a2).is_wrong_auth());
        assert!(!Rc::new(0x922).is_wrong_auth());
        assert!(Rc::new(0x99d).is_policy_fail() && !Rc::new(0x11d).is_policy_fail());
        assert!(Rc::new(0x3df).is_integrity() && !Rc::new(0x99d).is_integrity());
        assert!(Rc::new(0x128).is_pcr_changed() && !Rc::new(0x9a8).is_pcr_changed());
    }

    #[test]
    fn tables_have_each_code_once() {
        for table in [NAMES_ONE, NAMES_ZERO, NAMES_TSS] {
            for pair in table.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{pair:?}");
            }
        }
    }
}
