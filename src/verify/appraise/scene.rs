//! A host, a vTPM, a user and a container that tests put together, with real keys and signatures;
//! each part can be changed before everything is signed.

use super::expect::FirmwareRule;
use super::*;
use crate::batch::Batch;
use crate::binding::{self, Claim, HostPart, Kind, LogEntry, Record};
use crate::digest::*;
use crate::event::{
    Backend, Enforce, EnterMode, Event, Exec, ExecLog, Executable, Grounds, HostLink, How, Image,
    KernelCheck, KernelKeys, Latitude, Launch, List, Measure, MountsRule, Origin, Policy,
    ProgramsRule, Rootfs, RootfsCheck, RootfsDone, Runtime, Tier, TierName, UpperRule, User,
};
use crate::evidence::{HostPcrs, LogFrom, Root};
use crate::hostlist::HostPolicy;
use crate::imalog::{self, EncodedPath, Entry, Replay};
use crate::pcr::{HOST_QUOTED, PcrIndex, QUOTED};
use crate::profile::{
    CapabilitySets, How as Namespace, LaunchProfile, Launcher, NamespaceUse, ProcessProfile,
    UserProfile,
};
use crate::qualify;
use crate::siglist::Draft as ListDraft;
use crate::testkit::{self, NOW, TENANT, User as Signer, UserCa};
use crate::tpm2::softkey::{Draft, SoftKey};

pub(super) const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";
const START: [u8; 32] = [0; 32];

type Edit<T> = Box<dyn Fn(&mut T)>;

pub(super) struct Scene {
    /// Containers that were accepted before.
    pub peers: Vec<Trusted>,
    /// The kernel's list, and what the challenger makes of it.
    pub host_ima: Vec<u8>,
    pub host_policy: Option<HostPolicy>,
    pub host_ak: SoftKey,
    pub vtpm_ak: SoftKey,
    pub vtpm_ek: SoftKey,
    pub ca: UserCa,
    pub signer: Signer,
    pub list: ListDraft,
    pub claim: Claim,
    pub host: HostPart,
    /// The container's log.
    pub log: Vec<Entry>,
    /// The binding log around this container's entry.
    pub before: Vec<LogEntry>,
    pub after: Vec<LogEntry>,
    pub nonce: Nonce,
    pub asked: ContainerId,
    pub now: UnixTime,
    pub expect: Expectations,
    pub memory: Memory,
    pub batch: bool,
    /// Challenges that the host's quote covers before this one.
    pub others: Vec<[u8; 32]>,
    pub edit_vtpm_quote: Edit<Draft>,
    pub edit_host_quote: Edit<Draft>,
    pub edit_evidence: Edit<Evidence>,
}

pub(super) fn profile() -> LaunchProfile {
    let caps = vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()];
    let namespace = |kind: &str, how| NamespaceUse {
        kind: kind.into(),
        how,
        path: String::new(),
        peer: None,
    };
    LaunchProfile {
        launcher: Launcher::Cri,
        host_apparmor: false,
        host_selinux: false,
        host_unified_cgroups: false,
        process: ProcessProfile {
            program: "/usr/bin/app".into(),
            args_digest: ProfileDigest::of(br#"["/usr/bin/app"]"#).to_string(),
            env_names: vec!["PATH".into()],
            env_digest: ProfileDigest::of(b"env").to_string(),
            cwd: "/".into(),
            user: UserProfile {
                uid: 0,
                gid: 0,
                additional_gids: vec![],
            },
            capabilities: CapabilitySets {
                bounding: caps.clone(),
                effective: caps.clone(),
                inheritable: vec![],
                permitted: caps,
                ambient: vec![],
            },
            no_new_privileges: true,
            terminal: false,
            apparmor: String::new(),
            selinux: String::new(),
        },
        namespaces: ["ipc", "mount", "network", "pid", "uts"]
            .map(|k| namespace(k, Namespace::New))
            .to_vec(),
        mounts: vec![],
        volume_roots: vec![],
        mount_label: String::new(),
        sysctls: Default::default(),
        devices: vec![],
        device_rules: vec!["deny a *:* rwm".into()],
        tpm_by_rule: false,
        hooks: vec![],
        rootfs_readonly: true,
        seccomp: ProfileDigest::of(b"seccomp").to_string(),
        seccomp_opens: vec![],
        masked_paths: vec![],
        readonly_paths: vec![],
        cgroups_path: "/x".into(),
    }
}

impl Scene {
    pub fn new() -> Self {
        let (host_ak, vtpm_ak) = (SoftKey::attestation(), SoftKey::attestation());
        let vtpm_ek = SoftKey::endorsement();
        let ca = testkit::user_ca();
        let signer = ca.user();
        let image = ImageDigest::of(b"image");
        let list = testkit::draft(image);
        let claim = Claim {
            container: ContainerId::parse("web-1").unwrap(),
            created: NOW,
            vtpm_ak_name: vtpm_ak.public().name(),
            vtpm_ek_name: vtpm_ek.public().name(),
            vtpm_reset: 1,
            vtpm_restart: 0,
            image: image.into(),
            image_config: ConfigDigest::of(b"config").into(),
            bundle_config: BundleDigest::of(b"bundle"),
            profile: profile().digest().unwrap(),
            siglist: ListDigest::of(&list.statement_bytes().unwrap()).into(),
            user_cert: KeyDigest::of(&signer.der).into(),
            policy: PolicyDigest::of(b"policy"),
            mode: "enforce".into(),
            tier: "none".into(),
            runtime: FileDigest::of(b"attestrun"),
            swtpm: FileDigest::of(b"swtpm"),
            peers: vec![],
        };
        let host = HostPart {
            seq: 1,
            prev: "0".repeat(64),
            host_boot: BOOT.into(),
            host_reset: 7,
            host_ak_name: host_ak.public().name(),
        };
        let expect = Expectations {
            hosts: vec![PinnedHost {
                name: "node-1".into(),
                ak_name: host.host_ak_name,
                root: Root::Software,
                binding_pcr_start: hex::encode(START),
            }],
            images: vec![image],
            user_ca: vec!["/unused".into()],
            revocation: RevocationCheck::Unchecked,
            crls: vec![],
            host_policy: None,
            tenant: TENANT.into(),
            list: ExpectedList {
                name: list.name.clone(),
                min_serial: 1,
            },
            policies: vec![claim.policy],
            runtimes: vec![claim.runtime],
            swtpms: vec![claim.swtpm],
            rootfs: vec![RootfsDigest::of(b"rootfs")],
            mounts: Default::default(),
            enter: EnterMode::Listed,
            waive: vec![Waiver::SoftwareRoot, Waiver::NoIma, Waiver::TierNone],
            max_age_secs: 60,
            firmware: ExpectedFirmware {
                host: FirmwareRule::Any(Any::Any),
                vtpm: FirmwareRule::Any(Any::Any),
            },
            must_run: vec![],
            launch: ExpectedLaunch {
                args: ArgsRule::OneOf(vec![vec!["/usr/bin/app".into()]]),
                env: EnvRule::Any(Any::Any),
                allow: vec![],
            },
        };
        let mut scene = Self {
            peers: vec![],
            host_ima: vec![],
            host_policy: None,
            host_ak,
            vtpm_ak,
            vtpm_ek,
            ca,
            signer,
            list,
            claim,
            host,
            log: vec![],
            before: vec![],
            after: vec![],
            nonce: Nonce::new(vec![42; 20]).unwrap(),
            asked: ContainerId::parse("web-1").unwrap(),
            now: NOW,
            expect,
            memory: Memory::none(),
            batch: true,
            others: vec![],
            edit_vtpm_quote: Box::new(|_| ()),
            edit_host_quote: Box::new(|_| ()),
            edit_evidence: Box::new(|_| ()),
        };
        scene.log = scene
            .events()
            .iter()
            .map(|event| event.to_entry().unwrap())
            .collect();
        scene.log.extend(scene.entrypoint());
        scene
    }

    /// Everything up to the start, as the scene's record has it.
    pub fn events(&self) -> Vec<Event> {
        let executable = |sha256| Executable {
            version: "1.0".into(),
            sha256,
        };
        let manifest = RootfsDigest::of(b"rootfs");
        let mut events = vec![
            Event::HostLink(HostLink {
                host_ak_name: self.host.host_ak_name,
                host_reset: self.host.host_reset,
                host_boot: self.host.host_boot.clone(),
            }),
            Event::Runtime(Runtime {
                attestrun: executable(self.claim.runtime),
                swtpm: executable(self.claim.swtpm),
            }),
            Event::Policy(Policy {
                digest: self.claim.policy,
                enforce: Enforce::Enforce,
                tier: TierName::None,
                rootfs: RootfsCheck::Full,
                measure: Measure::Manifest,
                scripts: Latitude::Any,
                inject: Latitude::Any,
                anonymous_exec: Latitude::Any,
                enter: EnterMode::Listed,
                exec_log: ExecLog::First,
                rule: "demo".into(),
                decided_at: NOW,
            }),
            Event::Grounds(Grounds {
                origin: Origin::Image,
                programs: ProgramsRule::Listed,
                mounts: MountsRule::Programs,
                upper: UpperRule::Pristine,
                relaxations: vec![],
                sources: vec![],
                audited: vec![],
            }),
            Event::Image(Image {
                manifest: *self.claim.image.digest().unwrap(),
                config: *self.claim.image_config.digest().unwrap(),
                name: "localhost/demo:1".into(),
                verdict: crate::event::Verdict::Key {
                    fingerprint: KeyDigest::of(b"key"),
                    docker_reference: Some("localhost/demo".into()),
                },
                rule: "demo".into(),
            }),
            Event::User(User {
                certificate: KeyDigest::of(&self.signer.der),
                subject: "CN=Demo User".into(),
                tenant: TENANT.into(),
            }),
            Event::List(List {
                digest: *self.claim.siglist.digest().unwrap(),
                name: self.list.name.clone(),
                serial: self.list.serial,
            }),
            Event::Launch(Box::new(Launch {
                bundle_config: self.claim.bundle_config,
                backend: Backend {
                    name: "libcontainer".into(),
                    version: "0.7.0".into(),
                    sha256: None,
                },
                profile: profile(),
            })),
            Event::Rootfs(Rootfs {
                manifest,
                check: RootfsCheck::Full,
                entries: 3,
                bytes: 9,
                stubs: vec![],
            }),
            Event::RootfsDone(RootfsDone { manifest }),
            Event::Tier(Tier {
                tier: TierName::None,
                kernel: "6.1.0".into(),
                memory_files: Latitude::Any,
            }),
        ];
        events.extend((0..8).map(|n| Event::Separator(PcrIndex::new(n).unwrap())));
        events.push(Event::KernelKeys(KernelKeys {
            checked: KernelCheck::Signature,
            why: String::new(),
        }));
        events.push(Event::Start);
        events
    }

    pub fn entrypoint(&self) -> Vec<Entry> {
        executed(b"/usr/bin/app", b"app", How::Entrypoint)
    }

    /// Changes the event of that name, and with it the log.
    pub fn edit_event(&mut self, name: &str, edit: impl Fn(&mut Event)) {
        let edited = |entry: &Entry| match Event::from_entry(entry) {
            Ok(mut event) if event.name() == name => {
                edit(&mut event);
                event.to_entry().unwrap()
            }
            _ => entry.clone(),
        };
        self.log = self.log.iter().map(edited).collect();
    }

    /// Makes record, log and list agree about another list or signer.
    pub fn relist(&mut self) {
        self.claim.siglist = ListDigest::of(&self.list.statement_bytes().unwrap()).into();
        self.claim.user_cert = KeyDigest::of(&self.signer.der).into();
        self.log = self
            .events()
            .iter()
            .map(|event| event.to_entry().unwrap())
            .collect();
        self.log.extend(self.entrypoint());
    }

    /// Makes record and log agree about another launch profile.
    pub fn relaunch(&mut self, edit: impl Fn(&mut LaunchProfile)) {
        let mut profile = profile();
        edit(&mut profile);
        self.claim.profile = profile.digest().unwrap();
        self.edit_event("attestrun.launch", |event| {
            if let Event::Launch(launch) = event {
                launch.profile = profile.clone();
            }
        });
    }

    pub fn record(&self) -> Record {
        Record::new(self.claim.clone(), self.host.clone()).unwrap()
    }

    pub fn evidence(&self) -> Evidence {
        let channel = qualify::NO_CHANNEL_BINDING;
        let record = self.record();
        let r = record.digest().unwrap();

        let values = Replay::of(&self.log).sha256(&QUOTED);
        let mut quote = Draft::new(
            &qualify::vtpm(&self.nonce, &self.asked, channel),
            &QUOTED,
            &values,
        );
        quote.signer = self
            .vtpm_ak
            .public()
            .name()
            .qualified_in_endorsement()
            .as_bytes()
            .to_vec();
        (quote.reset, quote.restart) = (self.claim.vtpm_reset, self.claim.vtpm_restart);
        (self.edit_vtpm_quote)(&mut quote);
        let container_attest = quote.encode();
        let container_sig = self.vtpm_ak.sign(&container_attest);

        let bind = LogEntry::new(Kind::Bind, &self.claim.vtpm_ak_name, r);
        let entries = [self.before.as_slice(), &[bind], &self.after].concat();
        let mut pcrs = [[3; 32]; HOST_QUOTED.len()];
        pcrs[13] = binding::replay(START, &entries);
        if !self.host_ima.is_empty() {
            pcrs[10] = imalog::kernel::testkit::pcr(&self.host_ima);
        }
        let covered = qualify::vtpm_quote_digest(&container_attest, &container_sig);
        let leaf = qualify::host_leaf(&self.nonce, &self.asked, channel, &covered, &r);
        let tree = Batch::of([self.others.as_slice(), &[leaf]].concat()).unwrap();
        let mut quote = Draft::new(&tree.root(), &HOST_QUOTED, &pcrs);
        quote.reset = self.host.host_reset;
        (self.edit_host_quote)(&mut quote);
        let host_attest = quote.encode();

        let siglist = self.list.statement_bytes().unwrap();
        let mut evidence = Evidence {
            host_sig: self.host_ak.sign(&host_attest),
            host_attest,
            host_ak: self.host_ak.public().to_2b(),
            host_pcrs: HostPcrs(pcrs),
            host_root: Root::Software,
            container_attest,
            container_sig,
            container_ak: self.vtpm_ak.public().to_2b(),
            container_ek: self.vtpm_ek.public().to_2b(),
            batch: tree.path(self.others.len()).unwrap(),
            log_from: LogFrom::default(),
            binding: record.canonical().unwrap(),
            host_ima: self.host_ima.clone(),
            binding_log: entries
                .iter()
                .flat_map(|entry| entry.line().unwrap())
                .collect(),
            container_log: self.log.iter().flat_map(Entry::encode).collect(),
            siglist_sig: self.signer.sign(&siglist),
            siglist,
        };
        (self.edit_evidence)(&mut evidence);
        evidence
    }

    pub fn appraise(&self) -> Appraisal {
        self.appraise_evidence(&self.evidence())
    }
    pub fn appraise_evidence(&self, evidence: &Evidence) -> Appraisal {
        let trust = Trust {
            user_roots: self.ca.roots(),
            crls: vec![],
            host_policy: self.host_policy.clone(),
        };
        let question = Question {
            nonce: &self.nonce,
            container: &self.asked,
            channel_binding: qualify::NO_CHANNEL_BINDING,
            batch: self.batch,
            asked_at: NOW,
        };
        let (now, peers) = (self.now, &self.peers);
        appraise(
            evidence,
            &question,
            &Standard::new(self.expect.clone(), trust),
            now,
            peers,
            &self.memory,
        )
    }
}

/// What the log has about an execution.
pub(super) fn executed(path: &[u8], content: &[u8], how: How) -> Vec<Entry> {
    let (path, digest) = (EncodedPath::of(path).unwrap(), FileDigest::of(content));
    let record = Event::Exec(Exec {
        path: path.to_string(),
        digest,
        args_digest: "0".repeat(64),
        uid: 0,
        gid: 0,
        how,
    });
    vec![Entry::file(digest, path), record.to_entry().unwrap()]
}
