//! Writes the module as OCI images, without a container engine: `make image`.
//!
//!     cargo run --package image -- [--to target/image] [--image registry.example.com/ws-clean-close:0.1.0]
//!
//! Two forms of the same, as the proxies' agent in Istio takes them: an image with `plugin.wasm` in
//! one tar+gzip layer, which every registry and tool knows, and an artefact whose second layer is the
//! module itself. Both in one OCI layout, a folder and an archive of it. With `--probe`, the probe as an
//! image for containers beside it. Nothing of the time or the machine goes in: the same files give the
//! same digests.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use flate2::{Compression, GzBuilder};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use testbed::fetch;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PROBE: &str = "ws-close-probe";
const ARTEFACT_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const ARTEFACT_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// The manifests that name the image.
const MANIFESTS: [&str; 5] = [
    "wasm-plugin.yaml",
    "traffic-extension.yaml",
    "envoyfilter/network-per-chain.yaml",
    "envoyfilter/filter-low-cost.yaml",
    "examples/waypoint/waypoint-envoyfilter.yaml",
];

/// Those that name the probe's.
const PROBE_MANIFESTS: [&str; 2] =
    ["examples/probe/probe-job.yaml", "examples/probe/probe-cronjob.yaml"];

/// What `kubectl apply -k` reads, with the image in one place.
const KUSTOMIZE: [&str; 13] = [
    "envoyfilter/kustomization.yaml",
    "envoyfilter/network-per-chain.yaml",
    "envoyfilter/filter-low-cost.yaml",
    "kustomize/README.md",
    "kustomize/base/kustomization.yaml",
    "kustomize/base/wasm-plugins.yaml",
    "kustomize/image/kustomization.yaml",
    "kustomize/overlays/enforce-gateway/kustomization.yaml",
    "kustomize/overlays/low-cost/kustomization.yaml",
    "kustomize/overlays/mesh/kustomization.yaml",
    "kustomize/overlays/network-per-chain/kustomization.yaml",
    "kustomize/overlays/observe-gateway/kustomization.yaml",
    "kustomize/overlays/workloads/kustomization.yaml",
];

#[derive(Parser)]
struct Arguments {
    /// The folder to write.
    #[arg(long, default_value = "target/image")]
    to: PathBuf,
    /// Where the image is going to be: set in the manifests that are written.
    #[arg(long, default_value_t = format!("registry.example.com/ws-clean-close:{VERSION}"))]
    image: String,
    /// The probe as a static binary for Linux, from scripts/build-probe.
    #[arg(long)]
    probe: Option<PathBuf>,
    /// Where its image is going to be; beside the other, if not given.
    #[arg(long)]
    probe_image: Option<String>,
}

fn main() {
    let arguments = Arguments::parse();
    let module = fs::read(fetch::module()).expect("the module has been built");
    let layout = Layout::new(&arguments.to.join("layout"));
    let image = layout.image(&module);
    let artefact = layout.artefact(&module);
    layout.index(&[&image, &artefact]);

    let archive = arguments.to.join(format!("ws-clean-close-{VERSION}.oci.tar"));
    fs::write(&archive, layout.archive()).expect("the folder is writable");
    fs::write(arguments.to.join("plugin.wasm"), &module).expect("the folder is writable");
    // In quotes: to YAML a digest of digits alone is a number.
    let checksum = format!("sha256: \"{}\"", digest(&image).trim_start_matches("sha256:"));
    let flat = MANIFESTS.iter().map(|file| (file, name(Path::new(file))));
    let tree = KUSTOMIZE.iter().map(|file| (file, (*file).to_owned()));
    for (file, to) in flat.chain(tree) {
        arguments.write(file, &to, |text| {
            text.replace(
                &format!("registry.example.com/ws-clean-close:{VERSION}"),
                &arguments.image,
            )
            .replace("sha256: \"\"", &checksum)
            .replace("sha256: nil", &checksum)
        });
    }
    let probe = arguments.probe.as_deref().map(|probe| arguments.write_probe(probe));

    println!("module    {}", hex(&module));
    println!("          `sha256` for http:// and https:// addresses of plugin.wasm itself");
    println!("image     {}", digest(&image));
    println!(
        "          `sha256` for oci:// addresses, without \"sha256:\": the digest of the manifest"
    );
    println!("artefact  {}", digest(&artefact));
    println!("          the same for the artefact form, tag {}", tag(&artefact));
    if let Some(probe) = &probe {
        println!("probe     {}", digest(probe));
    }
    println!("written to {}:", arguments.to.display());
    println!("          layout/, {}: push with any OCI tool, such as", name(&archive));
    println!(
        "            skopeo copy oci:{}/layout:{VERSION} docker://{}",
        arguments.to.display(),
        arguments.image
    );
    if probe.is_some() {
        println!(
            "            skopeo copy oci:{}/probe/layout:{VERSION} docker://{}",
            arguments.to.display(),
            arguments.probe_image()
        );
    }
    println!("          wasm-plugin.yaml and the like: the manifests with this address and digest, to apply");
    println!("          kustomize/overlays: the same for kubectl apply -k");
}

impl Arguments {
    /// Writes one of the project's files with what is filled in.
    fn write(&self, file: &str, to: &str, fill: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(fetch::root().join(file)).expect("the manifest is there");
        let to = self.to.join(to);
        fs::create_dir_all(to.parent().unwrap_or(&to)).expect("the folder is writable");
        fs::write(to, fill(text)).expect("the folder is writable");
    }

    fn probe_image(&self) -> String {
        self.probe_image.clone().unwrap_or_else(|| {
            let (folder, last) = self.image.rsplit_once('/').unwrap_or(("", &self.image));
            let tag = last.split_once(':').map_or(VERSION, |(_, tag)| tag);
            format!("{folder}/{PROBE}:{tag}").trim_start_matches('/').to_owned()
        })
    }

    /// Writes the probe, its image and the manifests that name it; gives the descriptor of the image.
    fn write_probe(&self, probe: &Path) -> Value {
        let binary = fs::read(probe).expect("the probe has been built");
        let layout = Layout::new(&self.to.join("probe/layout"));
        let image = layout.probe(&binary);
        layout.index(&[&image]);
        let archive = self.to.join(format!("{PROBE}-{VERSION}.oci.tar"));
        fs::write(archive, layout.archive()).expect("the folder is writable");
        fs::copy(probe, self.to.join(PROBE)).expect("the folder is writable");
        let address = format!("{}@{}", self.probe_image(), digest(&image));
        for file in PROBE_MANIFESTS {
            self.write(file, &name(Path::new(file)), |text| {
                text.replace(&format!("registry.example.com/{PROBE}:{VERSION}"), &address)
            });
        }
        image
    }
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap_or_default().to_owned()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn tag(descriptor: &Value) -> String {
    descriptor["annotations"]["org.opencontainers.image.ref.name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI image layout: blobs by their digests, and an index.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn new(folder: &Path) -> Self {
        // Otherwise the blobs of an earlier module would stay.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder.join("blobs/sha256")).expect("the folder can be made");
        let layout = Self { folder: folder.to_owned() };
        layout.write("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes());
        layout
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.join(name), bytes).expect("the folder is writable");
    }

    /// Writes a blob; gives its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = hex(bytes);
        self.write(&format!("blobs/sha256/{digest}"), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    /// The form that every registry and tool knows: `plugin.wasm` in a layer.
    fn image(&self, module: &[u8]) -> Value {
        let (layer, diff_id) = self.layer("plugin.wasm", module, 0o644);
        let config = json!({
            "architecture": "wasm",
            "os": "wasip1",
            "config": { "Labels": annotations() },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        self.manifest(&config, &[layer], VERSION, &annotations())
    }

    /// An image for containers, with the static binary and nothing else.
    fn probe(&self, binary: &[u8]) -> Value {
        let (layer, diff_id) = self.layer(PROBE, binary, 0o755);
        let mut annotations = annotations();
        annotations["org.opencontainers.image.title"] = PROBE.into();
        annotations["org.opencontainers.image.description"] =
            "Reports how an address closes its WebSockets".into();
        let architecture = architecture(binary);
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": [format!("/{PROBE}")],
                // Nobody in particular: Kubernetes' runAsNonRoot asks for a number other than 0.
                "User": "65532:65532",
                "Labels": annotations,
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let mut descriptor = self.manifest(&config, &[layer], VERSION, &annotations);
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        descriptor
    }

    /// Writes a layer with one file; gives its descriptor and the digest of what is not compressed.
    fn layer(&self, name: &str, bytes: &[u8], mode: u32) -> (Value, String) {
        let tar = tar(&[(name.to_owned(), bytes.to_vec())], mode);
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&tar).expect("a Vec takes every byte");
        let layer = self.blob(LAYER, &gzip.finish().expect("a Vec takes every byte"));
        (layer, format!("sha256:{}", hex(&tar)))
    }

    /// The form of the Wasm artefact specification: its configuration, and the module as it is.
    fn artefact(&self, module: &[u8]) -> Value {
        let config = json!({
            "type": "envoy_proxy",
            "abiVersions": ["v0-proxy-wasm-0.2.1"],
            "config": { "root_ids": [""] },
        });
        let mut config = self.blob(ARTEFACT_CONFIG, config.to_string().as_bytes());
        config["annotations"] = json!({ "org.opencontainers.image.title": "runtime-config.json" });
        let mut layer = self.blob(ARTEFACT_LAYER, module);
        layer["annotations"] = json!({ "org.opencontainers.image.title": "plugin.wasm" });
        self.manifest(
            &config.clone(),
            &[config, layer],
            &format!("{VERSION}-artefact"),
            &annotations(),
        )
    }

    /// Writes a manifest; gives its descriptor, with a tag.
    fn manifest(&self, config: &Value, layers: &[Value], tag: &str, annotations: &Value) -> Value {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": annotations,
        });
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        descriptor
    }

    fn index(&self, manifests: &[&Value]) {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        self.write("index.json", index.to_string().as_bytes());
    }

    /// The layout as one file.
    fn archive(&self) -> Vec<u8> {
        let blobs = fs::read_dir(self.folder.join("blobs/sha256")).expect("the folder is there");
        let blobs = blobs.flatten().map(|blob| format!("blobs/sha256/{}", name(&blob.path())));
        let mut names: Vec<_> = blobs.chain(["oci-layout".into(), "index.json".into()]).collect();
        names.sort();
        let files = names.into_iter().map(|name| {
            let bytes = fs::read(self.folder.join(&name)).expect("it was written");
            (name, bytes)
        });
        tar(&files.collect::<Vec<_>>(), 0o644)
    }
}

fn annotations() -> Value {
    json!({
        "org.opencontainers.image.title": env!("CARGO_PKG_NAME"),
        "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
    })
}

/// As OCI has it, of an ELF binary.
fn architecture(binary: &[u8]) -> &'static str {
    match (binary.get(..4), binary.get(18)) {
        (Some(b"\x7fELF"), Some(0x3e)) => "amd64",
        (Some(b"\x7fELF"), Some(0xb7)) => "arm64",
        _ => panic!("the probe is no binary for Linux on x86_64 or aarch64: scripts/build-probe"),
    }
}

/// A tar archive that knows neither time nor owner.
fn tar(files: &[(String, Vec<u8>)], mode: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        tar.append_data(&mut header, name, bytes.as_slice()).expect("a Vec takes every byte");
    }
    tar.into_inner().expect("a Vec takes every byte")
}
