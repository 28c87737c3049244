//! Which TPM a configuration names, and whether it is hardware.

use super::HostError;
use super::command::{Step, rc_of};
use rustix::fs::{major, minor};
use std::{
    fmt, fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
    str::FromStr as _,
};
use tss_esapi::{Context, Error, TctiNameConf, constants::PropertyTag};

/// What vouches for the host. Never configured, only compared with the configuration.
///
/// `Hardware` means: a kernel device that is not virtual, whose TPM names a maker of hardware. A
/// challenger's proof is the EK certificate or a pinned key; this keeps an operator from taking a
/// software TPM for a real one by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    Hardware,
    Software,
}

impl Root {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a TPM is spoken to.
#[derive(Debug)]
pub enum Place {
    /// A character device of the kernel.
    Device(PathBuf),
    /// Anything that libtss2 reaches otherwise: never hardware, as far as we can tell.
    Library {
        tcti: String,
        resource_manager: bool,
    },
}

impl Place {
    pub fn parse(tcti: &str) -> Result<Self, HostError> {
        let refuse = || HostError::Tcti(tcti.chars().take(120).collect());
        let (name, argument) = tcti.split_once(':').ok_or_else(refuse)?;
        match name {
            "device" => {
                let path = PathBuf::from(argument);
                // libtss2 takes the rest of the text as the path; a NUL would cut it.
                let plain = |c| matches!(c, Component::RootDir | Component::Normal(_));
                if !path.is_absolute() || !path.components().all(plain) || tcti.contains('\0') {
                    return Err(refuse());
                }
                Ok(Self::Device(path))
            }
            "swtpm" | "mssim" | "tabrmd" if !argument.is_empty() => Ok(Self::Library {
                tcti: tcti.to_owned(),
                resource_manager: name == "tabrmd",
            }),
            _ => Err(refuse()),
        }
    }

    /// Whether objects of a connection vanish with it.
    pub fn has_resource_manager(&self) -> bool {
        match self {
            // A raw /dev/tpmN is single-open, and what is found loaded there may be the firmware's.
            Self::Device(_) => true,
            Self::Library {
                resource_manager, ..
            } => *resource_manager,
        }
    }

    pub fn open(&self) -> Result<Context, HostError> {
        let tcti = match self {
            Self::Device(path) => {
                check_device(path, Path::new("/sys/dev/char"))?;
                format!("device:{}", path.display())
            }
            Self::Library { tcti, .. } => tcti.clone(),
        };
        let conf = TctiNameConf::from_str(&tcti).map_err(|_| HostError::Tcti(tcti.clone()))?;
        Context::new(conf).map_err(|error| self.why(tcti, error))
    }

    /// libtss2 says "I/O error" for everything; the system knows better.
    fn why(&self, tcti: String, error: Error) -> HostError {
        if let Self::Device(path) = self
            && let Err(error) = fs::File::options().read(true).write(true).open(path)
        {
            return match error.kind() {
                ErrorKind::ResourceBusy => HostError::DeviceBusy(path.clone()),
                ErrorKind::NotFound => HostError::NoDevice(path.clone()),
                _ => HostError::Io(path.clone(), error),
            };
        }
        match error {
            Error::Tss2Error(code) if let Some(rc) = rc_of(code) => HostError::Open { tcti, rc },
            source => HostError::Library {
                command: "opening the TPM",
                source,
            },
        }
    }
}

/// The device must be a TPM's, and its place in sysfs must not be below `devices/virtual`: there
/// are the devices of tpm_vtpm_proxy, behind which any process may sit. On a machine without a TPM
/// the first container's vTPM would otherwise become `/dev/tpm0`.
fn check_device(path: &Path, sys_dev_char: &Path) -> Result<(), HostError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(HostError::NoDevice(path.to_owned()));
        }
        Err(error) => return Err(HostError::Io(path.to_owned(), error)),
    };
    if !metadata.file_type().is_char_device() {
        return Err(HostError::NotADevice(path.to_owned()));
    }
    let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    let link = sys_dev_char.join(number);
    let sysfs = fs::canonicalize(&link).map_err(|error| HostError::Io(link, error))?;
    judge_sysfs(path, &sysfs)
}

/// `…/tpm/tpmN` or `…/tpmrm/tpmrmN` of a chip that has a parent on a bus (tpm0 has the number of a
/// misc device, 10:224, but lies there too).
fn judge_sysfs(device: &Path, sysfs: &Path) -> Result<(), HostError> {
    let device = || device.to_owned();
    if sysfs.starts_with("/sys/devices/virtual") {
        return Err(HostError::Virtual {
            device: device(),
            sysfs: sysfs.to_owned(),
        });
    }
    let class = sysfs
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    match class {
        Some("tpm" | "tpmrm") if sysfs.starts_with("/sys/devices") => Ok(()),
        _ => Err(HostError::NotADevice(device())),
    }
}

/// TPM makers of the TCG Vendor ID Registry whose TPMs are hardware or a platform's firmware.
/// IBM is left out: the registered value is used by its software TPM, which libtpms is. Whoever is not
/// listed is taken for software.
const HARDWARE_MAKERS: &[&[u8; 4]] = &[
    b"AMD\0", b"ATML", b"BRCM", b"FLYS", b"HISI", b"HPE\0", b"IFX\0", b"INTC", b"LEN\0", b"NSM ",
    b"NTC\0", b"NTZ\0", b"QCOM", b"ROCC", b"SMSC", b"SMSN", b"SNS\0", b"STM ", b"TXN\0", b"WEC\0",
];

/// Asks the TPM who made it, if it is a device at all.
pub fn root_of(place: &Place, context: &mut Context) -> Result<Root, HostError> {
    match place {
        Place::Library { .. } => Ok(Root::Software),
        Place::Device(_) => {
            let (maker, model) = maker_and_model(context)?;
            Ok(judge_maker(maker, &model))
        }
    }
}

fn maker_and_model(context: &mut Context) -> Result<([u8; 4], Vec<u8>), HostError> {
    let mut property = |tag| {
        let value = context
            .get_tpm_property(tag)
            .map_err(Step::Capability.failed())?;
        value
            .map(u32::to_be_bytes)
            .ok_or_else(|| Step::Capability.malformed("the TPM does not say who made it"))
    };
    let maker = property(PropertyTag::Manufacturer)?;
    let model = [
        property(PropertyTag::VendorString1)?,
        property(PropertyTag::VendorString2)?,
        property(PropertyTag::VendorString3)?,
        property(PropertyTag::VendorString4)?,
    ];
    Ok((maker, model.concat()))
}

/// TPM_PT_MANUFACTURER and TPM_PT_VENDOR_STRING_1 to 4 (Part 2, 6.13). libtpms says `IBM` and
/// `SW   TPM`; the reference simulator `xCG fTPM`.
fn judge_maker(maker: [u8; 4], model: &[u8]) -> Root {
    let says = |word: &[u8]| model.windows(word.len()).any(|window| window == word);
    if says(b"SW ") || says(b"xCG") || !HARDWARE_MAKERS.contains(&&maker) {
        Root::Software
    } else {
        Root::Hardware
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_only_places_that_are_written_out() {
        for good in [
            "device:/dev/tpmrm0",
            "swtpm:host=127.0.0.1,port=2321",
            "tabrmd:bus_name=x",
        ] {
            assert!(Place::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "device",
            "device:",
            "device:tpm0",
            "device:/dev/../tmp/x",
            "device:/dev/tpm0\0x",
            "swtpm",
            "swtpm:",
            "mssim",
            "cmd:sh",
            "/dev/tpmrm0",
        ] {
            assert!(
                matches!(Place::parse(bad), Err(HostError::Tcti(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn refuse_virtual_and_foreign_devices() {
        let judge = |sysfs: &str| judge_sysfs(Path::new("/dev/tpm0"), Path::new(sysfs));
        for good in [
            "/sys/devices/pnp0/00:05/tpm/tpm0",
            "/sys/devices/platform/MSFT0101:00/tpmrm/tpmrm0",
            "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:00/tpm/tpm0",
        ] {
            assert!(judge(good).is_ok(), "{good}");
        }
        for virtual_one in [
            "/sys/devices/virtual/tpm/tpm0",
            "/sys/devices/virtual/tpmrm/tpmrm1",
        ] {
            assert!(
                matches!(judge(virtual_one), Err(HostError::Virtual { .. })),
                "{virtual_one}"
            );
        }
        for other in ["/sys/devices/pnp0/00:05/rtc/rtc0", "/tmp/tpm/tpm0", "/"] {
            assert!(
                matches!(judge(other), Err(HostError::NotADevice(_))),
                "{other}"
            );
        }
    }

    #[test]
    fn refuse_what_is_no_device() {
        let sys = Path::new("/sys/dev/char");
        let check = |path: &str| check_device(Path::new(path), sys);
        assert!(matches!(
            check("/nonexistent/tpmrm0"),
            Err(HostError::NoDevice(_))
        ));
        assert!(matches!(
            check("/proc/version"),
            Err(HostError::NotADevice(_))
        ));
        // /dev/null lies below /sys/devices/virtual.
        assert!(matches!(check("/dev/null"), Err(HostError::Virtual { .. })));
    }

    #[test]
    fn makers_of_software_are_software() {
        assert_eq!(
            judge_maker(*b"IBM\0", b"SW   TPM\0\0\0\0\0\0\0\0"),
            Root::Software
        );
        assert_eq!(
            judge_maker(*b"MSFT", b"xCG fTPM\0\0\0\0\0\0\0\0"),
            Root::Software
        );
        assert_eq!(
            judge_maker(*b"INTC", b"SW   TPM\0\0\0\0\0\0\0\0"),
            Root::Software
        );
        assert_eq!(
            judge_maker(*b"GOOG", b"vTPM\0\0\0\0\0\0\0\0\0\0\0\0"),
            Root::Software
        );
        assert_eq!(
            judge_maker(*b"IFX\0", b"SLB9670\0\0\0\0\0\0\0\0\0"),
            Root::Hardware
        );
        assert_eq!(
            judge_maker(*b"AMD\0", b"AMD\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            Root::Hardware
        );
    }
}
