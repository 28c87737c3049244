//! Commands and responses of a TPM 2.0 as bytes (TPM 2.0 Library Part 1, 18; codes of Part 2).
//!
//! Only what the vTPM client sends; all integers are big-endian. Reading is strict: a response must
//! be used up to its last byte.

use crate::rc::Rc;
use std::fmt;

/// Longest command or response (TPM2_MAX_COMMAND_SIZE of libtpms and of the PC Client profile).
pub const MAX_MESSAGE: usize = 4096;
/// Tag, size, code.
pub const HEADER: usize = 10;

pub const ST_NO_SESSIONS: u16 = 0x8001;
pub const ST_SESSIONS: u16 = 0x8002;
/// The password "session" (Part 1, 19.4).
pub const RS_PW: u32 = 0x4000_0009;

/// TPMA_SESSION.continueSession (Part 2, 8.4).
const CONTINUE_SESSION: u8 = 1;

pub const RH_OWNER: u32 = 0x4000_0001;
pub const RH_NULL: u32 = 0x4000_0007;
pub const RH_LOCKOUT: u32 = 0x4000_000A;
pub const RH_ENDORSEMENT: u32 = 0x4000_000B;
pub const RH_PLATFORM: u32 = 0x4000_000C;

pub const CAP_HANDLES: u32 = 1;
pub const CAP_TPM_PROPERTIES: u32 = 6;
/// The first of the properties that never change (Part 2, 6.13).
pub const PT_FIXED: u32 = 0x100;
/// TPMA_PERMANENT; the property after it is TPMA_STARTUP_CLEAR (Part 2, 6.13).
pub const PT_PERMANENT: u32 = 0x200;
pub const PT_STARTUP_CLEAR: u32 = 0x201;

/// A command code, its name, and whether its response has a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    value: u32,
    name: &'static str,
    returns_handle: bool,
}

impl Code {
    pub const HIERARCHY_CONTROL: Self = Self::new(0x121, "TPM2_HierarchyControl");
    pub const CHANGE_EPS: Self = Self::new(0x124, "TPM2_ChangeEPS");
    pub const CLEAR: Self = Self::new(0x126, "TPM2_Clear");
    pub const HIERARCHY_CHANGE_AUTH: Self = Self::new(0x129, "TPM2_HierarchyChangeAuth");
    pub const PCR_ALLOCATE: Self = Self::new(0x12B, "TPM2_PCR_Allocate");
    pub const NV_DEFINE_SPACE: Self = Self::new(0x12A, "TPM2_NV_DefineSpace");
    pub const CREATE_PRIMARY: Self = Self::with_handle(0x131, "TPM2_CreatePrimary");
    pub const NV_WRITE: Self = Self::new(0x137, "TPM2_NV_Write");
    pub const NV_WRITE_LOCK: Self = Self::new(0x138, "TPM2_NV_WriteLock");
    pub const PCR_RESET: Self = Self::new(0x13D, "TPM2_PCR_Reset");
    /// Any command of a container's.
    pub const CONTAINERS: Self = Self::new(0, "a container's command");
    pub const STARTUP: Self = Self::new(0x144, "TPM2_Startup");
    pub const NV_READ: Self = Self::new(0x14E, "TPM2_NV_Read");
    pub const SHUTDOWN: Self = Self::new(0x145, "TPM2_Shutdown");
    pub const POLICY_SECRET: Self = Self::new(0x151, "TPM2_PolicySecret");
    pub const IMPORT: Self = Self::new(0x156, "TPM2_Import");
    pub const LOAD: Self = Self::with_handle(0x157, "TPM2_Load");
    pub const QUOTE: Self = Self::new(0x158, "TPM2_Quote");
    pub const UNSEAL: Self = Self::new(0x15E, "TPM2_Unseal");
    pub const FLUSH_CONTEXT: Self = Self::new(0x165, "TPM2_FlushContext");
    pub const START_AUTH_SESSION: Self = Self::with_handle(0x176, "TPM2_StartAuthSession");
    pub const GET_CAPABILITY: Self = Self::new(0x17A, "TPM2_GetCapability");
    pub const GET_RANDOM: Self = Self::new(0x17B, "TPM2_GetRandom");
    pub const PCR_READ: Self = Self::new(0x17E, "TPM2_PCR_Read");
    pub const POLICY_PCR: Self = Self::new(0x17F, "TPM2_PolicyPCR");
    pub const POLICY_RESTART: Self = Self::new(0x180, "TPM2_PolicyRestart");
    pub const READ_CLOCK: Self = Self::new(0x181, "TPM2_ReadClock");
    pub const PCR_EXTEND: Self = Self::new(0x182, "TPM2_PCR_Extend");

    const fn new(value: u32, name: &'static str) -> Self {
        Self {
            value,
            name,
            returns_handle: false,
        }
    }
    const fn with_handle(value: u32, name: &'static str) -> Self {
        Self {
            value,
            name,
            returns_handle: true,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A structure being written.
#[derive(Debug, Clone, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
    /// A TPM2B. A value too long for one gives a size that no TPM accepts, as the command is then
    /// longer than [`MAX_MESSAGE`].
    pub fn sized(self, value: &[u8]) -> Self {
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX))
            .bytes(value)
    }
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// What is wrong with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it ends too early")]
    Short,
    #[error("it has {0} bytes more than its structures")]
    Trailing(usize),
    #[error("its size field says {0}")]
    Size(usize),
    #[error("its tag is {0:#x}")]
    Tag(u16),
    #[error("{0}")]
    Content(&'static str),
}

/// A structure being read.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(*head)
    }
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }
    /// A TPM2B.
    pub fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
    pub fn finish(self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(Malformed::Trailing(more)),
        }
    }
}

/// A command to be sent.
#[derive(Debug, Clone)]
pub struct Command {
    code: Code,
    handles: Writer,
    sessions: Writer,
    parameters: Writer,
}

impl Command {
    pub fn new(code: Code) -> Self {
        Self {
            code,
            handles: Writer::default(),
            sessions: Writer::default(),
            parameters: Writer::default(),
        }
    }
    pub const fn code(&self) -> Code {
        self.code
    }
    pub fn handle(mut self, handle: u32) -> Self {
        self.handles = self.handles.u32(handle);
        self
    }
    /// Authorizes the next handle with its authorization value.
    pub fn password(mut self, auth: &[u8]) -> Self {
        self.sessions = self.sessions.u32(RS_PW).sized(&[]).u8(0).sized(auth);
        self
    }
    /// Authorizes the next handle with a policy session that is bound to nothing and has no secret: then
    /// there is no HMAC (Part 1, 19.6.5). The session goes on, its policy begins anew.
    pub fn policy(mut self, session: u32) -> Self {
        let area = self.sessions.u32(session).sized(&[]);
        self.sessions = area.u8(CONTINUE_SESSION).sized(&[]);
        self
    }
    pub fn parameters(mut self, parameters: Writer) -> Self {
        self.parameters = self.parameters.bytes(&parameters.0);
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        let sessions = &self.sessions.0;
        let mut body = Writer::default().bytes(&self.handles.0);
        let mut tag = ST_NO_SESSIONS;
        if !sessions.is_empty() {
            tag = ST_SESSIONS;
            body = body.u32(length(sessions.len())).bytes(sessions);
        }
        let body = body.bytes(&self.parameters.0).finish();
        Writer::default()
            .u16(tag)
            .u32(length(HEADER + body.len()))
            .u32(self.code.value)
            .bytes(&body)
            .finish()
    }

    /// Takes the response of this command apart: `Ok(Err(rc))` is the TPM's refusal.
    pub fn decode(&self, response: &[u8]) -> Result<Result<Response, Rc>, Malformed> {
        let mut reader = Reader::new(response);
        let tag = reader.u16()?;
        let size = reader.u32()? as usize;
        let code = reader.u32()?;
        if size != response.len() {
            return Err(Malformed::Size(size));
        }
        if code != 0 {
            // A failure is a header and nothing else (Part 1, 18).
            if tag != ST_NO_SESSIONS {
                return Err(Malformed::Tag(tag));
            }
            reader.finish()?;
            return Ok(Err(Rc::new(code)));
        }
        let with_sessions = !self.sessions.0.is_empty();
        if tag
            != if with_sessions {
                ST_SESSIONS
            } else {
                ST_NO_SESSIONS
            }
        {
            return Err(Malformed::Tag(tag));
        }
        let handle = if self.code.returns_handle {
            Some(reader.u32()?)
        } else {
            None
        };
        let parameters = if with_sessions {
            let count = reader.u32()? as usize;
            let parameters = reader.take(count)?;
            self.check_sessions(reader)?;
            parameters
        } else {
            reader.rest()
        };
        Ok(Ok(Response {
            handle,
            parameters: parameters.to_vec(),
        }))
    }

    /// Each password is answered by an empty nonce, continueSession, and no HMAC (Part 1, 19.4); a policy
    /// session the same, with a nonce of the TPM's.
    fn check_sessions(&self, mut answer: Reader<'_>) -> Result<(), Malformed> {
        let mut asked = Reader::new(&self.sessions.0);
        while !asked.0.is_empty() {
            let is_password = asked.u32()? == RS_PW;
            asked.sized()?;
            asked.u8()?;
            asked.sized()?;
            let (nonce, attributes, hmac) = (answer.sized()?, answer.u8()?, answer.sized()?);
            let as_asked = nonce.is_empty() == is_password;
            if !as_asked || attributes != CONTINUE_SESSION || !hmac.is_empty() {
                return Err(Malformed::Content(match is_password {
                    true => "a password is not answered as one",
                    false => "a policy session is not answered as one",
                }));
            }
        }
        answer.finish()
    }
}

/// The TPM did as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub handle: Option<u32>,
    pub parameters: Vec<u8>,
}

/// TPML_PCR_SELECTION with one mask for each bank: three octets, least significant first
/// (Part 2, 10.9.7).
pub fn pcr_selection(banks: &[u16], mask: u32) -> Writer {
    let [a, b, c, _] = mask.to_le_bytes();
    banks.iter().fold(
        Writer::default().u32(length(banks.len())),
        |writer, bank| writer.u16(*bank).u8(3).bytes(&[a, b, c]),
    )
}

/// A size that exceeds 32 bits exceeds [`MAX_MESSAGE`] as well, so it is never sent.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use verify::tpm2::alg;

    fn extend() -> Command {
        Command::new(Code::PCR_EXTEND)
            .handle(10)
            .password(b"")
            .parameters(Writer::default().u32(1).u16(alg::SHA1).bytes(&[7; 20]))
    }

    #[test]
    fn a_command_is_what_part_1_says() {
        let mut want = vec![0x80, 0x02, 0, 0, 0, 53, 0, 0, 1, 0x82, 0, 0, 0, 10];
        want.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        want.extend([0, 0, 0, 1, 0, 4]);
        want.extend([7; 20]);
        assert_eq!(extend().encode(), want);
        assert_eq!(
            Command::new(Code::GET_RANDOM)
                .parameters(Writer::default().u16(8))
                .encode(),
            [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8]
        );
    }

    #[test]
    fn selection_counts_from_the_least_bit() {
        assert_eq!(
            pcr_selection(&[alg::SHA1, alg::SHA256], 1 | 1 << 10 | 1 << 23).finish(),
            [0, 0, 0, 2, 0, 4, 3, 1, 4, 0x80, 0, 11, 3, 1, 4, 0x80]
        );
    }

    const GOOD: [u8; 19] = [0x80, 2, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];

    #[test]
    fn accept_responses() {
        let nothing = Response {
            handle: None,
            parameters: vec![],
        };
        assert_eq!(extend().decode(&GOOD), Ok(Ok(nothing)));
        assert_eq!(
            extend().decode(&[0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22]),
            Ok(Err(Rc::new(0x922)))
        );
        assert_eq!(
            Command::new(Code::GET_RANDOM).decode(&[0x80, 1, 0, 0, 0, 13, 0, 0, 0, 0, 0, 1, 9]),
            Ok(Ok(Response {
                handle: None,
                parameters: vec![0, 1, 9]
            }))
        );
    }

    #[test]
    fn refuse_every_cut_and_every_addition() {
        for end in 0..GOOD.len() {
            assert!(extend().decode(&GOOD[..end]).is_err(), "{end}");
            // With a size field that agrees the structures themselves are too short.
            let mut cut = GOOD[..end].to_vec();
            if let Some(size) = cut.get_mut(5) {
                *size = end as u8;
                assert!(extend().decode(&cut).is_err(), "{end}");
            }
        }
        let mut longer = GOOD.to_vec();
        longer.push(0);
        assert_eq!(extend().decode(&longer), Err(Malformed::Size(19)));
        longer[5] = 20;
        assert_eq!(extend().decode(&longer), Err(Malformed::Trailing(1)));
    }

    #[test]
    fn refuse_wrong_tag_and_wrong_session_area() {
        let at = |index: usize, value: u8| {
            let mut bytes = GOOD;
            bytes[index] = value;
            extend().decode(&bytes)
        };
        assert_eq!(at(1, 1), Err(Malformed::Tag(0x8001)));
        assert_eq!(at(0, 0), Err(Malformed::Tag(2)));
        assert_eq!(
            at(16, 0),
            Err(Malformed::Content("a password is not answered as one"))
        );
        assert_eq!(at(13, 5), Err(Malformed::Short));
        assert_eq!(
            extend().decode(&[0x80, 2, 0, 0, 0, 10, 0, 0, 1, 1]),
            Err(Malformed::Tag(0x8002))
        );
        assert_eq!(
            extend().decode(&[0x80, 1, 0, 0, 0, 11, 0, 0, 1, 1, 0]),
            Err(Malformed::Trailing(1))
        );
    }
}
