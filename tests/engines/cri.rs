//! containerd as a kubelet uses it: pods with a runtime handler, through the CRI (k8s.io/cri-api, v1).

use super::{name, with_pause, with_sandbox};
use crate::{
    Module, Test,
    machine::{machine, patient},
    runtime::Runtime,
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecRequest, ExecSyncRequest,
    ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    runtime_service_client::RuntimeServiceClient,
};
use std::{
    fs,
    future::Future,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

type Client = RuntimeServiceClient<containerd_client::tonic::transport::Channel>;

pub const MODULE: Module = Module {
    name: "cri",
    prepare: super::warm,
    tests: &[
        Test::Each("life_of_a_pod", life_of_a_pod),
        Test::Ours("a_sandbox_is_exact", a_sandbox_is_exact),
        Test::Ours(
            "an_unsigned_image_does_not_start",
            an_unsigned_image_does_not_start,
        ),
    ],
};

/// A kubelet's connection to containerd.
struct Kubelet {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// What the CRI answers, or its error's text.
type Answer<T> =
    std::result::Result<containerd_client::tonic::Response<T>, containerd_client::tonic::Status>;

impl Kubelet {
    fn connect(world: &World) -> Result<Self> {
        world.ctr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(containerd_client::connect(
            "/run/containerd/containerd.sock",
        ))?;
        Ok(Self {
            runtime,
            client: Client::new(channel),
        })
    }

    fn ask<'a, T, F: Future<Output = Answer<T>>>(
        &'a mut self,
        call: impl FnOnce(&'a mut Client) -> F,
    ) -> Result<T> {
        let call = call(&mut self.client);
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(patient(Duration::from_secs(60)), call).await
        })?;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => bail!("{}", status.message()),
        }
    }

    fn pod(&mut self, rt: &Runtime, config: &PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: format!("e2e-{}", rt.name),
        };
        Ok(self.ask(|c| c.run_pod_sandbox(request))?.pod_sandbox_id)
    }

    /// A created container of `image`.
    fn container(
        &mut self,
        pod: &str,
        config: &PodSandboxConfig,
        image: &str,
        script: &str,
    ) -> Result<String> {
        let options = host_network();
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.into(),
                ..Default::default()
            }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: "app.log".into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        Ok(self.ask(|c| c.create_container(request))?.container_id)
    }

    fn start(&mut self, container: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: container.into(),
        };
        self.ask(|c| c.start_container(request)).map(drop)
    }

    fn exec_sync(&mut self, container: &str, cmd: &[&str]) -> Result<(String, i32)> {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: cmd.iter().map(ToString::to_string).collect(),
            timeout: 20,
        };
        let answer = self.ask(|c| c.exec_sync(request))?;
        Ok((
            String::from_utf8_lossy(&answer.stdout).into_owned(),
            answer.exit_code,
        ))
    }

    /// The URL at which the command can be talked to.
    fn exec(&mut self, container: &str, cmd: &[&str]) -> Result<String> {
        let request = ExecRequest {
            container_id: container.into(),
            cmd: cmd.iter().map(ToString::to_string).collect(),
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        Ok(self.ask(|c| c.exec(request))?.url)
    }

    fn stop_and_remove(&mut self, container: &str) -> Result<()> {
        let stop = StopContainerRequest {
            container_id: container.into(),
            timeout: 0,
        };
        self.ask(|c| c.stop_container(stop))?;
        self.remove(container)
    }

    fn remove(&mut self, container: &str) -> Result<()> {
        let remove = RemoveContainerRequest {
            container_id: container.into(),
        };
        self.ask(|c| c.remove_container(remove)).map(drop)
    }

    fn end_pod(&mut self, pod: &str) -> Result<()> {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod.into(),
        };
        self.ask(|c| c.stop_pod_sandbox(stop))?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: pod.into(),
        };
        self.ask(|c| c.remove_pod_sandbox(remove)).map(drop)
    }
}

/// There is no network plugin here.
fn host_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

fn pod_config(world: &World, rt: &Runtime) -> Result<PodSandboxConfig> {
    let logs = world.work.join("pod-logs");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name(world, "cri", rt),
            uid: "e2e".into(),
            namespace: "e2e".into(),
            attempt: 0,
        }),
        log_directory: logs.display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: if machine().systemd {
                "system.slice"
            } else {
                "/e2e"
            }
            .into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(host_network()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A pod in which images are started, one after the other.
pub struct Pod<'w> {
    world: &'w World,
    kubelet: Kubelet,
    config: PodSandboxConfig,
    id: String,
}

impl<'w> Pod<'w> {
    pub fn make(world: &'w World, rt: &Runtime) -> Result<Self> {
        let mut kubelet = Kubelet::connect(world)?;
        let config = pod_config(world, rt)?;
        let mut id = String::new();
        with_pause(world, || {
            id = kubelet.pod(rt, &config)?;
            Ok(())
        })?;
        world.note(&id);
        Ok(Self {
            world,
            kubelet,
            config,
            id,
        })
    }
    /// What containerd says against it, if it does not start.
    pub fn start(&mut self, image: &str) -> Result<std::result::Result<(), String>> {
        let (pod, config) = (self.id.clone(), self.config.clone());
        let container = self
            .kubelet
            .container(&pod, &config, image, "exec sleep 1000")?;
        self.world.note(&container);
        let started = self.kubelet.start(&container).map_err(|e| e.to_string());
        match started {
            Ok(()) => self.kubelet.stop_and_remove(&container)?,
            Err(_) => self.kubelet.remove(&container)?,
        }
        Ok(started)
    }
    pub fn end(mut self) -> Result<()> {
        let id = self.id.clone();
        self.kubelet.end_pod(&id)
    }
}

fn life_of_a_pod(world: &World, rt: &Runtime) -> Result<()> {
    with_pause(world, || pod_lives(world, rt))
}

fn pod_lives(world: &World, rt: &Runtime) -> Result<()> {
    let mut kubelet = Kubelet::connect(world)?;
    let config = pod_config(world, rt)?;
    let demo = &world.images()?.demo.name;
    let pod = kubelet.pod(rt, &config)?;
    world.note(&pod);
    let container = kubelet.container(&pod, &config, demo, "echo said; exec sleep 1000")?;
    world.note(&container);
    kubelet.start(&container)?;
    ensure!(
        kubelet.exec_sync(&container, &["/bin/echo", "inside"])? == ("inside\n".into(), 0),
        "ExecSync"
    );
    ensure!(
        kubelet.exec_sync(&container, &["/bin/sh", "-c", "exit 5"])? == (String::new(), 5),
        "its status"
    );
    let url = kubelet.exec(&container, &["/bin/sh", "-c", "echo streamed; exit 6"])?;
    let streamed = talk(&url)?;
    ensure!(
        streamed.contains("streamed\n") && streamed.contains(r#""message":"6""#),
        "Exec: {streamed}"
    );
    let log = fs::read_to_string(world.work.join("pod-logs/app.log"))?;
    ensure!(log.contains("stdout F said"), "the log: {log}");
    if rt.backend.is_some() {
        super::pod_is_accepted(world, &pod, &container)?;
        let denied = kubelet
            .exec_sync(&container, &[crate::image::UNLISTED, "x"])
            .map(drop)
            .err();
        let denied = denied.context("an unlisted program")?.to_string();
        ensure!(denied.contains("refused: "), "{denied}");
    }
    kubelet.stop_and_remove(&container)?;
    kubelet.end_pod(&pod)
}

/// Other arguments or another image than the sandbox entry's: no pod, whatever annotations say.
fn a_sandbox_is_exact(world: &World, rt: &Runtime) -> Result<()> {
    let (pause, demo) = (
        &world.images()?.pause.manifest,
        &world.images()?.demo.manifest,
    );
    let cases: [(&str, &[&str], &str); 3] = [
        (pause, &["/pause", "longer"], "for other arguments"),
        (pause, &["/bin/pause"], "for other arguments"),
        (demo, &["/pause"], "no rule is for this image"),
    ];
    for (image, args, words) in cases {
        with_sandbox(image, args, || {
            let mut config = pod_config(world, rt)?;
            let annotation = (
                "io.kubernetes.cri.container-type".to_owned(),
                "sandbox".to_owned(),
            );
            config.annotations.extend([annotation]);
            let refused = Kubelet::connect(world)?.pod(rt, &config).err();
            let refused = refused.context("this pod should be refused")?.to_string();
            ensure!(
                refused.contains("refused: ") && refused.contains(words),
                "{refused}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn an_unsigned_image_does_not_start(world: &World, rt: &Runtime) -> Result<()> {
    with_pause(world, || unsigned_in_a_pod(world, rt))
}

fn unsigned_in_a_pod(world: &World, rt: &Runtime) -> Result<()> {
    let mut kubelet = Kubelet::connect(world)?;
    let config = pod_config(world, rt)?;
    let unsigned = &world.images()?.unsigned;
    let pod = kubelet.pod(rt, &config)?;
    world.note(&pod);
    let container = kubelet.container(&pod, &config, &unsigned.name, "true")?;
    world.note(&container);
    let refused = kubelet
        .start(&container)
        .err()
        .context("an unsigned image started")?
        .to_string();
    ensure!(
        refused.contains("refused: ") && refused.contains(&unsigned.manifest),
        "{refused}"
    );
    kubelet.remove(&container)?;
    kubelet.end_pod(&pod)
}

/// Everything that a streaming server (k8s.io/apiserver, "v4.channel.k8s.io" over RFC 6455) sends.
fn talk(url: &str) -> Result<String> {
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|u| u.split_once('/'))
        .with_context(|| url.to_owned())?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(patient(Duration::from_secs(20))))?;
    let key = BASE64.encode(b"sixteen bytes ok");
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("the answer's head")?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut all = Vec::new();
    loop {
        let mut start = [0; 2];
        if stream.read_exact(&mut start).is_err() || start[0] & 0x0f == 8 {
            return Ok(String::from_utf8_lossy(&all).into_owned());
        }
        let length = match start[1] & 0x7f {
            126 => {
                let mut long = [0; 2];
                stream.read_exact(&mut long)?;
                u16::from_be_bytes(long).into()
            }
            127 => bail!("a frame of more than 64 KiB"),
            short => usize::from(short),
        };
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame)?;
        all.extend(frame.get(1..).unwrap_or_default()); // the first byte is the channel
    }
}
