//! The matrix of image signatures: {simple, bundle} × {key, keyless} × {manifest, index} × what is wrong
//! with them. Each cell is a store of its own, filled by `attestctl import`, and two verdicts that must
//! agree: `attestctl image verify`'s and `create`'s, under a policy that asks the same; and each is tried
//! under every engine.

mod engines;
mod made;

pub use engines::each_engine;
pub use made::Made;

use crate::{
    admission::restoring,
    cmd,
    host::{POLICY, policy},
    image::digest,
    publisher::STORE,
    runtime::{Backend, Bundle, Runtime},
    signatures::{fresh, verify},
    sigstore::{ISSUER, SUBJECT},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use made::{Cast, descriptor, layout};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

const SCAN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
const NAME: &str = "registry.example/app";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Simple,
    Bundle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    Key,
    Keyless,
}

/// What the signature is about; what runs is always the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Manifest,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Ok,
    /// Another key; another authority.
    WrongKey,
    WrongIdentity,
    WrongDigest,
    /// The certificate had run out when the signature was logged.
    Expired,
    OtherPredicate,
    None,
    Corrupt,
}

const FORMATS: [Format; 2] = [Format::Simple, Format::Bundle];
const SIGNERS: [Signer; 2] = [Signer::Key, Signer::Keyless];
const ABOUT: [About; 2] = [About::Manifest, About::Index];
const CASES: [Case; 8] = [
    Case::Ok,
    Case::WrongKey,
    Case::WrongIdentity,
    Case::WrongDigest,
    Case::Expired,
    Case::OtherPredicate,
    Case::None,
    Case::Corrupt,
];

/// One kind of signature, and what is wrong with it.
#[derive(Debug, Clone, Copy)]
struct Cell {
    format: Format,
    signer: Signer,
    about: About,
    case: Case,
}

/// Those that there are.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for format in FORMATS {
        for signer in SIGNERS {
            for about in ABOUT {
                cells.extend(CASES.map(|case| Cell {
                    format,
                    signer,
                    about,
                    case,
                }));
            }
        }
    }
    cells.retain(|cell| expected(cell.format, cell.signer, cell.case).is_some());
    cells
}

/// The words of a refusal; nothing for what there is no such thing of.
fn expected(format: Format, signer: Signer, case: Case) -> Option<&'static str> {
    Some(match (case, signer, format) {
        (Case::Ok, _, _) => "signed by",
        (Case::WrongKey, Signer::Key, _) => "was not made by key",
        (Case::WrongKey, Signer::Keyless, _) => "its certificate is not trusted",
        (Case::WrongIdentity, Signer::Keyless, _) => "which is not asked for",
        (Case::Expired, Signer::Keyless, _) => "was not in force when it signed",
        // A key has neither a name nor an end.
        (Case::WrongIdentity | Case::Expired, Signer::Key, _) => return None,
        (Case::WrongDigest | Case::None, _, _) => "has no signature for it",
        // The store keeps attestations apart.
        (Case::OtherPredicate, _, Format::Bundle) => "has no signature for it",
        (Case::OtherPredicate, _, Format::Simple) => "has type",
        (Case::Corrupt, Signer::Key, _) => "was not made by key",
        (Case::Corrupt, Signer::Keyless, _) => "was not made over this content",
    })
}

/// An index with the demo image's manifest in it, as a layout to import.
fn index_of(manifest: &[u8], dir: &Path) -> Result<(String, PathBuf)> {
    let mut child = descriptor(manifest);
    child["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    child["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [child] });
    let index = index.to_string().into_bytes();
    let mut entry = descriptor(&index);
    entry["mediaType"] = json!(kind);
    let dir = dir.join("index");
    let layout = layout(&dir, &[manifest, &index], &[entry])?;
    Ok((digest(&index), layout))
}

/// Where the cells are tried: signers, an index around the demo image, a store that holds its list.
struct Stage<'w> {
    world: &'w World,
    dir: PathBuf,
    cast: Cast,
    index: (String, PathBuf),
}

impl<'w> Stage<'w> {
    fn new(world: &'w World) -> Result<Self> {
        let host = world.open_for_business()?;
        let dir = fresh(world, "matrix")?;
        let demo = &world.images()?.demo;
        let manifest = fs::read(demo.blob(&demo.manifest))?;
        let index = index_of(&manifest, &dir)?;
        let list = host.owner.list(demo, 1)?;
        let signature = host.owner.sign_list(&list)?;
        let import = || -> Result<_> {
            let import = world.ctl()?.args(["import", "--store"]);
            Ok(import.arg(dir.join("lists")))
        };
        import()?.arg(&demo.layout).ok()?;
        let import = import()?.arg("--list").arg(list);
        import.arg("--sig").arg(signature).ok()?;

        Ok(Self {
            world,
            dir,
            cast: Cast::new()?,
            index,
        })
    }

    /// The host's store holds this cell's signature and the list.
    fn set(&self, cell: Cell) -> Result<()> {
        let demo = &self.world.images()?.demo;
        let signed = match cell.about {
            About::Manifest => &demo.manifest,
            About::Index => &self.index.0,
        };
        let dir = fresh(self.world, "matrix/cell")?;
        let mut sources = vec![self.index.1.clone()];
        if cell.case != Case::None {
            let made = &self.cast;
            let made = made.signature(cell.format, cell.signer, cell.case, signed)?;
            sources.push(made.write(&dir)?);
        }
        cmd!("rm", "-rf", STORE).ok()?;
        cmd!("cp", "-a", self.dir.join("lists"), STORE).ok()?;
        let import = self.world.ctl()?.args(["import", "--store", STORE]);
        import.args(&sources).ok()?;
        Ok(())
    }

    /// A policy whose rule asks for the right key or the right identity.
    fn policy(&self, signer: Signer) -> Result<String> {
        let (key, root) = (self.dir.join("key.pub"), self.dir.join("root.json"));
        self.cast.demand(signer, &self.dir)?; // and with it these files
        let by = match signer {
            Signer::Key => format!("key = {{ path = {key:?} }}"),
            Signer::Keyless => format!(
                "trusted_root = {root:?}, keyless = {{ identities = [{{ issuer = \"{ISSUER}\", subject = \"{SUBJECT}\" }}] }}"
            ),
        };
        // a bundle signs no name
        let signers =
            format!("authorities = [{{ name = \"signer\", {by} }}]\nsigned_identity = \"any\"");
        let text = policy("enforce");
        let keys = text.lines().find(|line| line.starts_with("keys ="));
        Ok(text.replace(keys.context("keys")?, &signers))
    }
}

/// `body` on a stage; store and policy are the old ones afterwards.
fn staged(world: &World, body: impl FnOnce(&Stage<'_>) -> Result<()>) -> Result<()> {
    let stage = Stage::new(world)?;
    let done = restoring(STORE, || restoring(POLICY, || body(&stage)));
    cmd!("rm", "-rf", &stage.dir).ok()?;
    done
}

pub fn the_matrix(world: &World) -> Result<()> {
    staged(world, |stage| {
        let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
        let rootfs = world.rootfs(0)?;
        world.note(&rootfs.id);
        let bundle = Bundle::make(&world.work, &rootfs, &["/bin/true"])?;
        let cells = cells();
        ensure!(cells.len() == 56, "{} cells", cells.len());
        let mut wrong = Vec::new();
        for cell in cells {
            stage.set(cell).context(format!("{cell:?}"))?;
            fs::write(POLICY, stage.policy(cell.signer)?)?;
            wrong.extend(misjudged(stage, cell)?);
            let launched = rt.run(&bundle)?;
            wrong.extend(mislaunched(cell, &launched));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

/// `attestctl image verify` does not say what is expected.
fn misjudged(stage: &Stage<'_>, cell: Cell) -> Result<Option<String>> {
    let demand = stage.cast.demand(cell.signer, &stage.dir)?;
    let demand: Vec<&str> = demand.iter().map(String::as_str).collect();
    let image = &stage.world.images()?.demo.manifest;
    let judged = verify(stage.world, Path::new(STORE), image, &demand)?;
    let words = expected(cell.format, cell.signer, cell.case).unwrap_or_default();
    let code = if cell.case == Case::Ok { 0 } else { 1 };
    let right = judged.code() == code && judged.stdout.contains(words);
    Ok((!right).then(|| format!("{cell:?}: expected {code} and `{words}`: {judged}")))
}

/// Nor does a launch.
fn mislaunched(cell: Cell, launched: &Output) -> Option<String> {
    let words = at_create(cell);
    let right = match cell.case {
        Case::Ok => launched.code() == 0,
        _ => launched.code() != 0 && launched.stderr.contains("refused: "),
    };
    let right = right && launched.stderr.contains(words);
    (!right).then(|| format!("{cell:?} at create: expected `{words}`: {launched}"))
}

/// The words of a refusal at `create`.
fn at_create(cell: Cell) -> &'static str {
    match cell.case {
        Case::Ok => "",
        Case::WrongDigest | Case::None => "it is not signed",
        // its store is looked through for attestations too
        Case::OtherPredicate if cell.format == Format::Bundle => "the statement is of type",
        case => expected(cell.format, cell.signer, case).unwrap_or_default(),
    }
}
