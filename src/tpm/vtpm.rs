//! A container's vTPM: a small TPM 2.0 client over a connected socket to an swtpm.
//!
//! Trusts: the process at the other end, which the guard started, and whose answers are parsed
//! strictly nevertheless.

mod certificate; // the endorsement certificate in its NV memory
mod unseal; // a workload opens what was sealed to its vTPM

pub use crate::channel::Error;
pub use unseal::UnsealError;

use crate::channel::Channel;
use crate::filter::Broker;
use crate::wire::{
    CAP_TPM_PROPERTIES, Code, Command, Malformed, PT_PERMANENT, PT_STARTUP_CLEAR, RH_ENDORSEMENT,
    RH_LOCKOUT, RH_OWNER, RH_PLATFORM, Writer, pcr_selection,
};
use crate::{Clock, Key, Quote, random};
use std::os::unix::net::UnixStream;
use verify::pcr::{Pcr, PcrIndex};
use verify::tpm2::{self, TpmName, alg};

/// TPMA_PERMANENT (Part 2, 8.6).
const LOCKOUT_AUTH_SET: u32 = 1 << 2;

/// A hierarchy that TPM2_HierarchyControl can close (Part 3, 24.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    Owner,
    Endorsement,
    Platform,
}

impl Hierarchy {
    const fn handle(self) -> u32 {
        match self {
            Self::Owner => RH_OWNER,
            Self::Endorsement => RH_ENDORSEMENT,
            Self::Platform => RH_PLATFORM,
        }
    }
}

/// The guard, as the owner of one vTPM; or a workload, whose commands go through the guard's filter.
#[derive(Debug)]
pub struct Vtpm {
    channel: Channel,
}

impl Vtpm {
    /// Takes our end of the socket pair whose other end swtpm inherited; in a container, a connection to the
    /// guard.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            channel: Channel::new(stream),
        }
    }

    /// The container's way to this vTPM.
    pub fn lend(&self) -> Broker {
        Broker::new(self.channel.line())
    }

    /// Takes from everybody, ourselves included, what could rewrite the vTPM's past: TPM2_Clear
    /// (lockout authorization becomes a random value that is then forgotten) and, with the
    /// platform hierarchy, TPM2_ChangeEPS, TPM2_PCR_Allocate and TPM2_Clear again. Only a restart of
    /// swtpm opens that hierarchy again, and a restart shows in the reset count.
    ///
    /// In a vTPM whose state was kept the lockout authorization was forgotten at its first start.
    pub fn lock_down(&mut self) -> Result<(), Error> {
        let [permanent, _] = self.permanent_and_startup_clear()?;
        if permanent & LOCKOUT_AUTH_SET == 0 {
            self.forget_lockout_auth()?;
        }
        self.hierarchy_control(Hierarchy::Platform, false)?;
        self.check_locked_down()
    }

    fn forget_lockout_auth(&mut self) -> Result<(), Error> {
        let forgotten: [u8; 32] = random::bytes().map_err(Error::Random)?;
        let command = Command::new(Code::HIERARCHY_CHANGE_AUTH)
            .handle(RH_LOCKOUT)
            .password(b"")
            .parameters(Writer::default().sized(&forgotten));
        self.run(&command)
    }

    /// TPMA_PERMANENT.lockoutAuthSet and not TPMA_STARTUP_CLEAR.phEnable (Part 2, 8.6 and 8.7).
    fn check_locked_down(&mut self) -> Result<(), Error> {
        const PLATFORM_ENABLED: u32 = 1;
        let [permanent, startup_clear] = self.permanent_and_startup_clear()?;
        if permanent & LOCKOUT_AUTH_SET == 0 || startup_clear & PLATFORM_ENABLED != 0 {
            let what = Malformed::Content("it is not locked down although it said so");
            return Err(self.channel.malformed(Code::GET_CAPABILITY, what));
        }
        Ok(())
    }

    fn permanent_and_startup_clear(&mut self) -> Result<[u32; 2], Error> {
        self.properties([PT_PERMANENT, PT_STARTUP_CLEAR])
    }

    /// The values of `wanted`, which follow one upon the other.
    fn properties<const N: usize>(&mut self, wanted: [u32; N]) -> Result<[u32; N], Error> {
        let first = wanted.first().copied().unwrap_or_default();
        let count = u32::try_from(N).unwrap_or(u32::MAX);
        let command = Command::new(Code::GET_CAPABILITY).parameters(
            Writer::default()
                .u32(CAP_TPM_PROPERTIES)
                .u32(first)
                .u32(count),
        );
        self.channel.read(&command, |_, reader| {
            const OTHERS: Malformed = Malformed::Content("these are other properties");
            reader.u8()?; // moreData
            if [reader.u32()?, reader.u32()?] != [CAP_TPM_PROPERTIES, count] {
                return Err(OTHERS);
            }
            let mut values = [0; N];
            for (property, value) in wanted.into_iter().zip(&mut values) {
                if reader.u32()? != property {
                    return Err(OTHERS);
                }
                *value = reader.u32()?;
            }
            Ok(values)
        })
    }

    /// Opens or closes a hierarchy. Closing the platform's is for good until the next reset.
    pub fn hierarchy_control(&mut self, which: Hierarchy, enable: bool) -> Result<(), Error> {
        let command = Command::new(Code::HIERARCHY_CONTROL)
            .handle(which.handle())
            .password(b"")
            .parameters(Writer::default().u32(which.handle()).u8(u8::from(enable)));
        self.run(&command)
    }

    /// The endorsement key, ECC P-256 (TCG EK Credential Profile, template L-2).
    pub fn create_ek(&mut self) -> Result<Key, Error> {
        self.create_primary(&tpm2::ek_template(), &[])
    }

    /// The attestation key. A primary of the endorsement hierarchy, for there the clock fields of
    /// a quote are in clear (with a key of the owner hierarchy they are obfuscated: Part 3,
    /// "Attestation Commands"). `outside_info` ends up in its creation data.
    pub fn create_aik(&mut self, outside_info: &[u8; 32]) -> Result<Key, Error> {
        self.create_primary(&tpm2::aik_template(), outside_info)
    }

    /// The same where the state is kept: `start` makes it another key at each start, for a key that was
    /// bound once is never bound again.
    pub fn create_aik_of_start(
        &mut self,
        outside_info: &[u8; 32],
        start: &[u8; 32],
    ) -> Result<Key, Error> {
        self.create_primary(&tpm2::aik_template_of(start), outside_info)
    }

    /// Before its process is ended: the state is then as it was left (TPM2_Shutdown(CLEAR)).
    pub fn shut_down(&mut self) -> Result<(), Error> {
        let command = Command::new(Code::SHUTDOWN).parameters(Writer::default().u16(0));
        self.run(&command)
    }

    fn create_primary(&mut self, template: &[u8], outside_info: &[u8]) -> Result<Key, Error> {
        // TPM2B_SENSITIVE_CREATE without authorization value and data; no creation PCRs.
        let no_secret = Writer::default().sized(b"").sized(b"").finish();
        let command = Command::new(Code::CREATE_PRIMARY)
            .handle(RH_ENDORSEMENT)
            .password(b"")
            .parameters(
                Writer::default()
                    .sized(&no_secret)
                    .sized(template)
                    .sized(outside_info)
                    .u32(0),
            );
        self.channel.read(&command, |handle, reader| {
            let public = reader.sized()?.to_vec();
            reader.sized()?; // creationData
            reader.sized()?; // creationHash
            reader.u16()?; // creationTicket: tag, hierarchy, digest
            reader.u32()?;
            reader.sized()?;
            let name = TpmName::of_public(&public);
            if reader.sized()? != name.as_bytes() {
                return Err(Malformed::Content(
                    "the key's name is not that of its public area",
                ));
            }
            let handle = handle.ok_or(Malformed::Short)?;
            Ok(Key {
                handle,
                public,
                name,
            })
        })
    }

    /// Unloads a key, for a vTPM has room for three.
    pub fn flush(&mut self, key: Key) -> Result<(), Error> {
        let command =
            Command::new(Code::FLUSH_CONTEXT).parameters(Writer::default().u32(key.handle));
        self.run(&command)
    }

    /// Extends both banks.
    pub fn extend(
        &mut self,
        pcr: PcrIndex,
        sha1: &[u8; 20],
        sha256: &[u8; 32],
    ) -> Result<(), Error> {
        let command = Command::new(Code::PCR_EXTEND)
            .handle(u32::from(pcr)) // a PCR's handle is its index
            .password(b"")
            .parameters(
                Writer::default()
                    .u32(2)
                    .u16(alg::SHA1)
                    .bytes(sha1)
                    .u16(alg::SHA256)
                    .bytes(sha256),
            );
        self.run(&command)
    }

    /// Both banks of one PCR.
    pub fn pcr_read(&mut self, pcr: PcrIndex) -> Result<Pcr, Error> {
        let selection = pcr_selection(&[alg::SHA1, alg::SHA256], bit(pcr)).finish();
        let command = Command::new(Code::PCR_READ).parameters(Writer::default().bytes(&selection));
        self.channel.read(&command, |_, reader| {
            reader.u32()?; // pcrUpdateCounter
            if reader.take(selection.len())? != selection {
                return Err(Malformed::Content("a PCR bank is missing"));
            }
            if reader.u32()? != 2 {
                return Err(Malformed::Content("there are not two PCR values"));
            }
            let mut pcr = Pcr::ZERO;
            copy(&mut pcr.sha1, reader.sized()?)?;
            copy(&mut pcr.sha256, reader.sized()?)?;
            Ok(pcr)
        })
    }

    /// Signs the SHA-256 bank's `pcrs` over `qualifying_data`. The key's scheme decides how.
    pub fn quote(
        &mut self,
        aik: &Key,
        qualifying_data: &[u8; 32],
        pcrs: &[PcrIndex],
    ) -> Result<Quote, Error> {
        if pcrs.is_empty() {
            return Err(Error::EmptySelection);
        }
        let mask = pcrs.iter().fold(0, |mask, pcr| mask | bit(*pcr));
        let command = Command::new(Code::QUOTE)
            .handle(aik.handle)
            .password(b"")
            .parameters(
                Writer::default()
                    .sized(qualifying_data)
                    .u16(alg::NULL)
                    .bytes(&pcr_selection(&[alg::SHA256], mask).finish()),
            );
        self.channel.read(&command, |_, reader| {
            let attest = reader.sized()?.to_vec();
            let signature = reader.rest().to_vec();
            Ok(Quote { attest, signature })
        })
    }

    pub fn read_clock(&mut self) -> Result<Clock, Error> {
        self.channel
            .read(&Command::new(Code::READ_CLOCK), |_, reader| {
                reader.u64()?; // time since the last _TPM_Init
                Ok(Clock {
                    clock_ms: reader.u64()?,
                    reset_count: reader.u32()?,
                    restart_count: reader.u32()?,
                    safe: match reader.u8()? {
                        0 => false,
                        1 => true,
                        _ => return Err(Malformed::Content("`safe` is neither yes nor no")),
                    },
                })
            })
    }

    /// 32 bytes of the vTPM's generator.
    pub fn get_random(&mut self) -> Result<[u8; 32], Error> {
        let command = Command::new(Code::GET_RANDOM).parameters(Writer::default().u16(32));
        self.channel.read(&command, |_, reader| {
            let mut bytes = [0; 32];
            copy(&mut bytes, reader.sized()?)?;
            Ok(bytes)
        })
    }

    /// A command that answers nothing.
    fn run(&mut self, command: &Command) -> Result<(), Error> {
        self.channel.read(command, |_, _| Ok(()))
    }
}

fn bit(pcr: PcrIndex) -> u32 {
    1 << u32::from(pcr)
}

fn copy<const N: usize>(to: &mut [u8; N], from: &[u8]) -> Result<(), Malformed> {
    *to = from
        .try_into()
        .map_err(|_| Malformed::Content("a digest has a wrong length"))?;
    Ok(())
}
