//! The checks of an appraisal by their stable names, and the outcomes that a check can have.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Whose evidence a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Host,
    Container,
}

impl Subject {
    pub const ALL: [Self; 2] = [Self::Host, Self::Container];
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const HOST: &[Subject] = &[Subject::Host];
const CONTAINER: &[Subject] = &[Subject::Container];
const BOTH: &[Subject] = &Subject::ALL;

macro_rules! checks {
    ($($(#[$doc:meta])* $variant:ident $name:literal $subjects:ident;)*) => {
        /// One question that an appraisal must answer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($(#[$doc])* $variant,)*
        }

        impl Check {
            /// All checks, in the order of a report.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
            /// Whom the check is about: it appears once for each.
            pub const fn subjects(self) -> &'static [Subject] {
                match self {
                    $(Self::$variant => $subjects,)*
                }
            }
        }
    };
}

checks! {
    /// TPMS_ATTEST, TPMT_SIGNATURE and TPMT_PUBLIC parse strictly.
    QParse "Q-PARSE" BOTH;
    /// Made by a TPM: TPM_GENERATED_VALUE.
    QMagic "Q-MAGIC" BOTH;
    /// A quote, no other attestation.
    QType "Q-TYPE" BOTH;
    /// Signed by the attestation key, with an allowed algorithm.
    QSig "Q-SIG" BOTH;
    /// Qualifying data is the one that this challenge demands.
    QQd "Q-QD" BOTH;
    /// The key that signed stands where it should below its TPM's hierarchy.
    QSigner "Q-SIGNER" BOTH;
    /// The attestation key cannot sign what the TPM did not make, and never leaves it.
    QAkattr "Q-AKATTR" BOTH;
    /// Exactly the demanded PCRs, SHA-256 bank alone.
    QSel "Q-SEL" BOTH;
    /// The PCR values, as replayed and reported, give the signed digest.
    QPcrdig "Q-PCRDIG" BOTH;
    /// Clock safe; the vTPM's reset and restart counts are those of the record; nothing went back.
    QClock "Q-CLOCK" BOTH;
    /// The TPM's firmware is one that the challenger expects.
    QFw "Q-FW" BOTH;
    /// The host's attestation key is one that the challenger pinned, and the record's.
    KHak "K-HAK" HOST;
    /// The vTPM's attestation and endorsement keys are the record's.
    KVak "K-VAK" CONTAINER;
    /// No key plays two roles or serves two containers.
    KDistinct "K-DISTINCT" CONTAINER;
    /// The root of trust is hardware.
    HRoot "H-ROOT" HOST;
    /// The record is bound in the host's log and covered by the host's quote.
    BHash "B-HASH" CONTAINER;
    /// The container that was asked about answers.
    BId "B-ID" CONTAINER;
    /// The image is one that the challenger expects, in record and measurement.
    BImg "B-IMG" CONTAINER;
    /// Record, measurement and quote come from the same boot of the host.
    BEpoch "B-EPOCH" CONTAINER;
    /// Bound once, not unbound since.
    BLive "B-LIVE" CONTAINER;
    /// The host's quote covers the vTPM's quote.
    BOrder "B-ORDER" CONTAINER;
    /// The log parses strictly and holds known events alone.
    LParse "L-PARSE" BOTH;
    /// Every entry's hashes are those of its content.
    LTmpl "L-TMPL" CONTAINER;
    /// The log continues the one that was seen before.
    LCont "L-CONT" BOTH;
    /// The log explains the quoted PCRs, and nothing else is in them.
    LReplay "L-REPLAY" BOTH;
    /// The host link comes first; each PCR holds exactly its events, in order, then its separator.
    LFirst "L-FIRST" CONTAINER;
    /// Paths are absolute and in their one encoded form.
    LPath "L-PATH" CONTAINER;
    /// No file changed while it was measured.
    LViol "L-VIOL" CONTAINER;
    /// Nothing of the log is kept from this challenger.
    POpaque "P-OPAQUE" CONTAINER;
    /// Every executed file's path is in the signature list.
    PUnlisted "P-UNLISTED" CONTAINER;
    /// What must have been executed was.
    PMissing "P-MISSING" CONTAINER;
    /// Every executed file's digest is the listed one.
    PHash "P-HASH" CONTAINER;
    /// No fault was recorded.
    PFault "P-FAULT" CONTAINER;
    /// The host ran listed programs only.
    PHost "P-HOST" HOST;
    /// The list's signer is a certified user of the tenant.
    PCert "P-CERT" CONTAINER;
    /// The signature list is signed, current, for this image, and the measured one.
    PSiglist "P-SIGLIST" CONTAINER;
    /// The kernel itself has checked the signature behind the list.
    PKeys "P-KEYS" CONTAINER;
    /// No mode weaker than the challenger allows.
    PMode "P-MODE" CONTAINER;
    /// The policy that admitted the container is an expected one.
    PPolicy "P-POLICY" CONTAINER;
    /// attestrun and swtpm are expected builds.
    PRuntime "P-RUNTIME" CONTAINER;
    /// The root file system was checked in full and is an expected one.
    PRootfs "P-ROOTFS" CONTAINER;
    /// A signed image; or the pod's sandbox, a build, a directory without an image, each by name.
    POrigin "P-ORIGIN" CONTAINER;
    /// A signature list says which programs may run; or the policy does, or nobody, each by name.
    PPrograms "P-PROGRAMS" CONTAINER;
    /// No mount may hide a listed program.
    PMounts "P-MOUNTS" CONTAINER;
    /// The answer is fresh.
    TAge "T-AGE" BOTH;
    /// The challenger's own clock has not gone back.
    TSkew "T-SKEW" BOTH;
    /// The tier of enforcement inside the container.
    TTier "T-TIER" CONTAINER;
    /// Launch profile: arguments.
    CArgs "C-ARGS" CONTAINER;
    /// Launch profile: environment.
    CEnv "C-ENV" CONTAINER;
    /// Launch profile: user, capabilities, seccomp.
    CCaps "C-CAPS" CONTAINER;
    /// Launch profile: namespaces.
    CNs "C-NS" CONTAINER;
    /// Launch profile: mounts.
    CMount "C-MOUNT" CONTAINER;
    /// Launch profile: devices.
    CDev "C-DEV" CONTAINER;
    /// Launch profile: hooks.
    CHook "C-HOOK" CONTAINER;
    /// Launch profile: other containers whose namespaces are joined.
    CPeer "C-PEER" CONTAINER;
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// A relaxation that a challenger's expectations must name before a check may be waived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiver {
    /// The host TPM is a software one (H-ROOT).
    SoftwareRoot,
    /// The host has no IMA list (P-HOST).
    NoIma,
    /// Nothing is enforced inside the running container (T-TIER).
    TierNone,
    /// What execve opens is judged, other ways to run code are not (T-TIER).
    TierFanotify,
    /// The policy was recorded, not enforced (P-MODE, P-FAULT).
    Audit,
    /// Nobody that counts signed the image (P-ORIGIN).
    UnsignedImage,
    /// A pod's sandbox: the policy names image and arguments (P-ORIGIN, P-PROGRAMS and what is about lists).
    Sandbox,
    /// A step of an image's build (P-ORIGIN, B-IMG).
    Build,
    /// A directory that no image is known of (P-ORIGIN, B-IMG).
    NoImage,
    /// The policy names the programs' digests, no signed list does (P-PROGRAMS and what is about lists).
    NoList,
    /// Any program may run (P-PROGRAMS and what is about lists).
    AnyProgram,
    /// Mounts may hide listed programs (P-MOUNTS).
    AnyMounts,
    /// Files that did not change in this boot were not read again (P-ROOTFS).
    RootfsBoot,
    /// A process of the host vouched that files did not change since they were read (P-ROOTFS).
    RootfsWatched,
    /// Contents of files were not compared (P-ROOTFS).
    RootfsStat,
    /// The kernel could not check the list's signature or chain (P-KEYS).
    KernelKeys,
}

impl Waiver {
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftwareRoot => "software-root",
            Self::NoIma => "no-ima",
            Self::TierNone => "tier-none",
            Self::TierFanotify => "tier-fanotify",
            Self::Audit => "audit",
            Self::UnsignedImage => "unsigned-image",
            Self::Sandbox => "sandbox",
            Self::Build => "build",
            Self::NoImage => "no-image",
            Self::NoList => "no-list",
            Self::AnyProgram => "any-program",
            Self::AnyMounts => "any-mounts",
            Self::RootfsBoot => "rootfs-boot",
            Self::RootfsWatched => "rootfs-watched",
            Self::RootfsStat => "rootfs-stat",
            Self::KernelKeys => "kernel-keys",
        }
    }
}

impl fmt::Display for Waiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The answer to a check. Only `Ok` and `Waived` let an appraisal pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// Would be refused or unknown, but the expectations name the waiver `by`.
    Waived {
        by: Waiver,
        what: String,
    },
    /// Evidence is absent, or another failure keeps it out of reach.
    Unknown {
        why: String,
    },
    Refused {
        why: String,
    },
}

impl Outcome {
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Ok | Self::Waived { .. })
    }
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Waived { .. } => "waived",
            Self::Unknown { .. } => "unknown",
            Self::Refused { .. } => "refused",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Waived { by, what } => write!(f, "waived by {by}: {what}"),
            Self::Unknown { why } => write!(f, "unknown: {why}"),
            Self::Refused { why } => write!(f, "refused: {why}"),
        }
    }
}

/// One check's answer about one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Check,
    pub subject: Subject,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What was looked at, for humans.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.subject, self.check, self.outcome)
    }
}
