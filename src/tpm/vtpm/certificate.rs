//! The endorsement key's certificate, where a TPM's maker leaves it: in NV memory, to be read by everybody
//! and written by nobody again (TCG EK Credential Profile 2.x, "NV Index").

use super::Vtpm;
use crate::Make;
use crate::channel::Error;
use crate::filter::EK_CERTIFICATE;
use crate::wire::{CAP_HANDLES, Code, Command, PT_FIXED, RH_OWNER, Writer};
use verify::tpm2::alg;

/// TPMA_NV (Part 2, 13.4). The platform's hierarchy is closed by then, so the index is the owner's; the
/// filter keeps a container from writing and from undefining it. WRITEDEFINE: once locked it stays so.
const ATTRIBUTES: u32 = OWNER_WRITE | WRITE_DEFINE | OWNER_READ | AUTH_READ | NO_DA;
const OWNER_WRITE: u32 = 1 << 1;
const WRITE_DEFINE: u32 = 1 << 13;
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
const NO_DA: u32 = 1 << 25;
/// Any TPM writes so many bytes at once (TPM_PT_NV_BUFFER_MAX).
const PIECE: usize = 512;

impl Vtpm {
    /// What its certificate says of it.
    pub fn make(&mut self) -> Result<Make, Error> {
        // the other properties there: family, day, year, four of the vendor's name, type
        let [_, level, revision] = self.properties([PT_FIXED, PT_FIXED + 1, PT_FIXED + 2])?;
        let [manufacturer] = self.properties([PT_FIXED + 5])?;
        let [firmware] = self.properties([PT_FIXED + 11])?;
        Ok(Make {
            level,
            revision,
            manufacturer,
            firmware,
        })
    }

    /// Whether there is one.
    pub fn has_certificate(&mut self) -> Result<bool, Error> {
        let wanted = Writer::default()
            .u32(CAP_HANDLES)
            .u32(EK_CERTIFICATE)
            .u32(1);
        let command = Command::new(Code::GET_CAPABILITY).parameters(wanted);
        self.channel.read(&command, |_, reader| {
            reader.u8()?; // moreData
            reader.u32()?; // capability
            // the first index from there on, if there is one
            let count = reader.u32()?;
            (0..count).try_fold(false, |found, _| {
                reader.u32().map(|handle| found || handle == EK_CERTIFICATE)
            })
        })
    }

    /// Leaves `certificate` in the TPM, once.
    pub fn deliver(&mut self, certificate: &[u8]) -> Result<(), Error> {
        let size = u16::try_from(certificate.len()).unwrap_or(u16::MAX);
        // TPMS_NV_PUBLIC (Part 2, 13.5): no policy
        let public = Writer::default()
            .u32(EK_CERTIFICATE)
            .u16(alg::SHA256)
            .u32(ATTRIBUTES)
            .sized(b"")
            .u16(size)
            .finish();
        let define = Command::new(Code::NV_DEFINE_SPACE)
            .handle(RH_OWNER)
            .password(b"")
            .parameters(Writer::default().sized(b"").sized(&public));
        self.run(&define)?;
        let on_index = |code| {
            Command::new(code)
                .handle(RH_OWNER)
                .handle(EK_CERTIFICATE)
                .password(b"")
        };
        for (number, piece) in certificate.chunks(PIECE).enumerate() {
            let offset = u16::try_from(number * PIECE).unwrap_or(u16::MAX);
            let parameters = Writer::default().sized(piece).u16(offset);
            self.run(&on_index(Code::NV_WRITE).parameters(parameters))?;
        }
        self.run(&on_index(Code::NV_WRITE_LOCK))
    }
}
