//! `attestctl policy explain`: which entry of a host's policy is for something, and whether it admits
//! it. The same decision as on the host, but for the launch, which is not known here.

use super::read_policy;
use crate::{
    disk,
    report::{Ending, Report, Usage},
    source::{ImageArgs, Source},
};
use ::verify::{
    id::UnixTime,
    image::{ClaimedImage, Image},
    policy::{Asked, ContentRule, Explanation, Material, Policy, Subject, explain, plain_text},
    rootfs::MeasuredRootfs,
    signature::StoredSignature,
};
use anyhow::{Context as _, bail};
use clap::Args;
use content::{
    MAX_TRUST_FILE, read_trusted,
    signatures::Store,
    store::{Client, LocateError, Named, Rootfs, Roots, named},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};
use verify::digest::ImageDigest;

/// Which stores the host has; no option relocates it.
const CONFIG: &str = "/etc/attestrun/config.toml";

#[derive(Args)]
pub struct Explain {
    /// The engine's name or id for an image (podman, CRI-O and buildah, Docker, containerd), or a path:
    /// an OCI image layout, or an archive of one
    #[arg(required_unless_present_any = ["rootfs", "build"])]
    image: Option<String>,
    /// Of a layout: tag, name or digest of the image, when it holds several
    #[arg(long)]
    tag: Option<String>,
    /// Of a layout: the engine's name for the image, by which rules are chosen
    #[arg(long)]
    name: Option<String>,
    /// A step of building on top of the image, or of nothing
    #[arg(long)]
    build: bool,
    /// A root file system of no image, instead of an image
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["image", "build"])]
    rootfs: Option<PathBuf>,
    #[arg(long, default_value = ::verify::policy::PATH)]
    policy: PathBuf,
    /// Signature store
    #[arg(long, default_value = "/var/lib/attestrun/signatures")]
    store: PathBuf,
    /// The arguments that the container will have: a sandbox entry is for exact ones
    #[arg(last = true)]
    args: Vec<String>,
}

/// Of config.toml: the rest is the runtime's.
#[derive(Deserialize)]
struct HostConfig {
    stores: Roots,
}

/// Something that was asked about, and the answer.
struct Answer {
    /// Where it was found.
    place: Option<String>,
    found: Explanation,
}

pub fn run(args: &Explain) -> anyhow::Result<Report> {
    let policy = read_policy(&args.policy)?;
    let asking = Asking {
        args,
        policy: &policy,
        now: UnixTime::from_secs(chrono::Utc::now().timestamp()),
    };
    let answers = match (&args.rootfs, &args.image) {
        (Some(rootfs), _) => vec![asking.rootfs(rootfs)?],
        (None, None) => vec![asking.answer(None, Subject::Build(None))],
        (None, Some(image)) if Path::new(image).exists() => vec![asking.file(image.into())?],
        (None, Some(image)) => asking.engines(image)?,
    };
    Ok(report(&args.policy, &policy, &answers))
}

struct Asking<'a> {
    args: &'a Explain,
    policy: &'a Policy,
    now: UnixTime,
}

impl Asking<'_> {
    fn answer(&self, place: Option<String>, subject: Subject<'_>) -> Answer {
        let asked = match self.args.args.as_slice() {
            [] => Asked::Any(subject),
            args => Asked::With(subject, args),
        };
        Answer {
            place,
            found: explain(self.policy, asked, self.now),
        }
    }

    fn signatures(&self) -> anyhow::Result<Store> {
        let store = &self.args.store;
        Store::open(store)
            .with_context(|| format!("reading the signature store {}", store.display()))
    }

    /// The directory of an OCI bundle; where the entry says what it must hold, it is read.
    fn rootfs(&self, rootfs: &Path) -> anyhow::Result<Answer> {
        let context = || format!("reading the root file system {}", rootfs.display());
        let rootfs = rootfs.canonicalize().with_context(context)?;
        let mut answer = self.answer(None, Subject::Bundle(&rootfs));
        if let Some(ContentRule::OneOf(known)) = &answer.found.content {
            let root = Rootfs::open(&rootfs).with_context(context)?;
            let tree = content::tree::walk(root.as_fd()).with_context(context)?;
            let digest = MeasuredRootfs::of(&tree).manifest();
            if !known.contains(&digest) {
                answer.found.against.push(format!(
                    "its content is {digest}, which the entry does not name"
                ));
                answer.found.hints.push(
                    "restore the directory, or name this digest under `content` of the entry"
                        .into(),
                );
            }
        }
        Ok(answer)
    }

    /// An image in files: nobody has named it but whoever asks.
    fn file(&self, path: PathBuf) -> anyhow::Result<Answer> {
        let source = Source::open(&ImageArgs {
            image: path,
            tag: self.args.tag.clone(),
        })?;
        let mut claimed = source.claimed().clone();
        if let Some(name) = &self.args.name {
            claimed.name.clone_from(name);
        }
        let store = self.signatures()?;
        let digest = source.image.manifest_digest();
        for (_, index) in store.indexes_containing(&digest)? {
            if !claimed.index_bytes.contains(&index) {
                claimed.index_bytes.push(index);
            }
        }
        self.image(None, &claimed, &store, |digest| {
            store.signatures_and_attestations(digest)
        })
    }

    fn image(
        &self,
        place: Option<String>,
        claimed: &ClaimedImage,
        store: &Store,
        signatures: impl FnMut(&ImageDigest) -> anyhow::Result<Vec<StoredSignature>>,
    ) -> anyhow::Result<Answer> {
        let image = Image::of(claimed).with_context(|| format!("image {}", claimed.name))?;
        if self.args.build {
            return Ok(self.answer(place, Subject::Build(Some(&image))));
        }
        let material = Material::gather(
            self.policy,
            &image,
            |path| read_trusted(path, MAX_TRUST_FILE).map_err(|e| format!("{e:#}")),
            signatures,
            |digest| store.lists(digest),
        )
        .with_context(|| format!("reading the signature store {}", self.args.store.display()))?;
        Ok(self.answer(place, Subject::Image(&material)))
    }

    /// Every store of the host that has an image of this name.
    fn engines(&self, image: &str) -> anyhow::Result<Vec<Answer>> {
        if self.args.tag.is_some() || self.args.name.is_some() {
            bail!(Usage(format!(
                "--tag and --name go with a layout, and there is no file {image}"
            )));
        }
        let roots = stores()?;
        let store = self.signatures()?;
        let all = named(image, &roots, &store, &Client::connect);
        let silent = |named: &Named| matches!(named.claims, Err(LocateError::Failed(_)));
        // a store that does not answer matters when no other one has the image
        if all.iter().all(silent) {
            let why: Vec<_> = (all.iter())
                .filter_map(|named| {
                    Some(format!(
                        "; {}: {}",
                        named.store,
                        named.claims.as_ref().err()?
                    ))
                })
                .collect();
            bail!(
                "no store that {CONFIG} names has an image `{image}`, and there is no file of this name{}",
                why.concat()
            );
        }
        let found = all.iter().filter(|named| !silent(named));
        found.map(|named| self.of_store(named, &store)).collect()
    }

    /// As at create: of the manifests that have this configuration, the first that is admitted.
    fn of_store(&self, named: &Named, store: &Store) -> anyhow::Result<Answer> {
        let place = Some(named.store.clone());
        let claims = match &named.claims {
            Ok(claims) => claims,
            Err(why) => return Ok(unclaimed(named, why)),
        };
        let mut first = None;
        for claimed in claims {
            let signatures = |digest: &ImageDigest| named.signatures(digest, store);
            let answer = self.image(place.clone(), claimed, store, signatures)?;
            if answer.found.against.is_empty() {
                return Ok(answer);
            }
            first.get_or_insert(answer);
        }
        first.with_context(|| format!("image {} has no manifest", named.name))
    }
}

/// An image that a store has and that no rule can be asked about: `create` refuses it.
fn unclaimed(named: &Named, why: &LocateError) -> Answer {
    Answer {
        place: Some(named.store.clone()),
        found: Explanation::unclaimed(&named.name, plain_text(&why.to_string())),
    }
}

fn stores() -> anyhow::Result<Roots> {
    let context = || format!("reading the configuration {CONFIG}");
    let text = read_trusted(Path::new(CONFIG), disk::SMALL).with_context(context)?;
    let text = String::from_utf8(text).with_context(context)?;
    let config: HostConfig = toml::from_str(&text).with_context(context)?;
    Ok(config.stores)
}

fn report(path: &Path, policy: &Policy, answers: &[Answer]) -> Report {
    let endings: BTreeSet<_> = answers.iter().map(|answer| answer.outcome().1).collect();
    let ending = match () {
        () if endings.contains("unknown") => Ending::Unknown,
        () if endings.contains("refused") => Ending::Refused,
        () => Ending::Done,
    };
    let texts: Vec<_> = answers.iter().map(|a| a.text(path, policy)).collect();
    Report {
        ending,
        text: texts.join("\n"),
        json: json!({
            "outcome": match ending {
                Ending::Done => "accepted",
                other => other.word(),
            },
            "policy": path,
            "digest": policy.digest(),
            "mode": policy.mode(),
            "explained": answers.iter().map(Answer::json).collect::<Vec<_>>(),
        }),
    }
}

impl Answer {
    fn outcome(&self) -> (&'static str, &'static str) {
        match (self.found.against.is_empty(), self.found.undecided) {
            (true, _) => ("admitted", "accepted"),
            (false, false) => ("refused", "refused"),
            (false, true) => ("cannot decide", "unknown"),
        }
    }

    fn text(&self, path: &Path, policy: &Policy) -> String {
        let found = &self.found;
        let mut lines = vec![found.subject.clone()];
        lines.extend(self.place.iter().map(|place| format!("in {place}")));
        lines.push(format!("policy {} ({})", path.display(), policy.mode()));
        lines.push(found.entry.clone().unwrap_or_else(|| "no rule".to_owned()));
        let (word, _) = self.outcome();
        if found.against.is_empty() {
            lines.push(format!(
                "{word}, its launch apart: {}; programs {}",
                found.vouched, found.programs
            ));
        }
        lines.extend(found.against.iter().map(|why| format!("{word}: {why}")));
        let others = found.otherwise.iter();
        lines.extend(others.map(|entry| format!("otherwise: {entry}")));
        lines.extend(found.hints.iter().map(|hint| format!("remedy: {hint}")));
        let sources = found.sources.iter();
        lines.extend(sources.map(|s| format!("by {} {} ({})", s.kind, s.path, s.sha256)));
        lines.join("\n  ")
    }

    fn json(&self) -> Value {
        let found = &self.found;
        json!({
            "outcome": self.outcome().1,
            "subject": found.subject,
            "store": self.place,
            "entry": found.entry,
            "vouched": found.vouched,
            "programs": found.programs,
            "sources": found.sources,
            "against": found.against,
            "otherwise": found.otherwise,
            "hints": found.hints,
        })
    }
}
