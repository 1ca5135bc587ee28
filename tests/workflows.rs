//! `.github`: the workflows by actionlint, and that what they and the forms name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;
use serde_json::Value;
use testbed::fetch;
use testbed::manifests::parse;

const ACTIONLINT: &str = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12";

fn github() -> PathBuf {
    fetch::root().join(".github")
}

fn read(file: impl AsRef<Path>) -> String {
    let file = fetch::root().join(file);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn yaml(file: impl AsRef<Path>) -> Value {
    parse(&read(file)).remove(0)
}

/// The files of a folder of `.github`, with their text.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(github().join(folder)).expect("a folder").flatten();
    let mut files: Vec<_> = entries.map(|entry| (entry.path(), read(entry.path()))).collect();
    files.sort();
    files
}

/// `None`, with a notice, if Go is missing.
fn actionlint(file: &Path) -> Option<Output> {
    let program = fetch::go_install(ACTIONLINT, "actionlint")?;
    // Without shellcheck everywhere: the same result on every machine.
    let output = Command::new(program).args(["-no-color", "-shellcheck="]).arg(file).output();
    Some(output.expect("actionlint runs"))
}

#[test]
fn workflows_are_accepted() {
    for (file, _) in files("workflows") {
        let Some(output) = actionlint(&file) else { return };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}", file.display());
    }
}

/// The check above can fail.
#[test]
fn wrong_workflows_are_refused() {
    let folder = fetch::folder(&format!("run/workflows-{}", std::process::id()));
    let file = folder.join("release.yml");
    let right = read(".github/workflows/release.yml");
    for (from, to, says) in [
        ("needs: test", "needs: tests", "tests"),
        ("id-token: write", "id-tokens: write", "id-tokens"),
        ("steps.version.outputs", "steps.versions.outputs", "versions"),
        ("timeout-minutes: 60", "timeout-minute: 60", "timeout-minute"),
    ] {
        assert!(right.contains(from), "{from}");
        fs::write(&file, right.replace(from, to)).expect("the testbed's folder is writable");
        let Some(output) = actionlint(&file) else { return };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(says), "{to}: {said}");
    }
    fs::remove_dir_all(folder).expect("it was written");
}

/// The targets of make, the scripts and the files that a workflow runs or hands over.
#[test]
fn what_workflows_run_is_there() {
    let makefile = read("Makefile");
    let scripts = read("scripts/release") + &read("scripts/sbom");
    let make = Regex::new(r"\bmake ([a-z-]+)").expect("a pattern");
    let script =
        Regex::new(r"(?:\./|run: )((?:\.ci|\.github|scripts)/[\w./-]+)").expect("a pattern");
    let product = Regex::new(r"target/dist/([\w$.-]+)").expect("a pattern");
    let (mut targets, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (file, text) in files("workflows") {
        for found in make.captures_iter(&text) {
            assert!(
                makefile.contains(&format!("\n{}:", &found[1])),
                "{}: {}",
                file.display(),
                &found[0]
            );
            targets.insert(found[1].to_owned());
        }
        for found in script.captures_iter(&text) {
            assert!(fetch::root().join(&found[1]).is_file(), "{}: {}", file.display(), &found[0]);
            paths.insert(found[1].to_owned());
        }
        for found in product.captures_iter(&text) {
            let suffix = found[1].rsplit("$VERSION").next().expect("a part");
            let made = scripts.contains(suffix) || suffix == "SHA256SUMS.sigstore.json";
            assert!(made, "{}: {} is not written by scripts/release", file.display(), &found[0]);
        }
    }
    assert!(targets.contains("release"), "{targets:?}");
    assert!(paths.contains(".ci/run"), "{paths:?}");
}

/// Actions are named by commit, with the version beside it for dependabot and the reader: a tag can be moved.
#[test]
fn actions_are_pinned() {
    let uses = Regex::new(r"uses: (\S+)(.*)").expect("a pattern");
    let pinned = Regex::new(r"^[\w-]+/[\w-]+@[0-9a-f]{40}$").expect("a pattern");
    let version = Regex::new(r"^ # v\d+\.\d+\.\d+$").expect("a pattern");
    let mut count = 0;
    for (file, text) in files("workflows") {
        for found in uses.captures_iter(&text).filter(|found| !found[1].starts_with("./")) {
            let fine = pinned.is_match(&found[1]) && version.is_match(&found[2]);
            assert!(fine, "{}: {}", file.display(), &found[0]);
            count += 1;
        }
    }
    assert!(count >= 8, "{count}");
}

/// A release is tested first, and signed without a key that somebody keeps.
#[test]
fn a_release_is_tested_and_signed() {
    let release = yaml(".github/workflows/release.yml");
    assert_eq!(release["jobs"]["test"]["uses"], "./.github/workflows/ci.yml");
    assert_eq!(release["jobs"]["publish"]["needs"], "test");
    assert_eq!(release["jobs"]["publish"]["permissions"]["id-token"], "write");
    let text = read(".github/workflows/release.yml");
    for step in
        ["cosign sign --yes", "cosign sign-blob", "--type cyclonedx", "attest-build-provenance"]
    {
        assert!(text.contains(step), "{step}");
    }
    assert!(!text.contains("--key"));
    // Nobody but the release may write.
    assert_eq!(
        yaml(".github/workflows/ci.yml")["permissions"],
        serde_json::json!({"contents": "read"})
    );
}

/// The part of the changelog that becomes a release's notes, by the workflow's own program.
#[test]
fn notes_are_the_changelogs() {
    let text = read(".github/workflows/release.yml");
    let (_, program) = text.split_once("awk -v heading=\"## [$VERSION]\" '").expect("a program");
    let (program, _) = program.split_once('\'').expect("its end");
    let file = fetch::folder("run").join(format!("changelog-{}.md", std::process::id()));
    let changelog = "# Changelog\n\n## [Unreleased]\n\nnew\n\n## [0.1.0] - 2026-12-01\n\n### Added\n\n- this\n\n\
                     ## [0.0.9]\n\nold\n";
    fs::write(&file, changelog).expect("the testbed's folder is writable");
    let mut awk = Command::new("awk");
    let notes = fetch::run(awk.args(["-v", "heading=## [0.1.0]", program]).arg(&file));
    assert_eq!(notes.trim(), "### Added\n\n- this");
    fs::remove_file(file).expect("it was written");
}

/// The forms ask for what a fault cannot be found without, and GitHub accepts them.
#[test]
fn issue_forms() {
    let mut required = BTreeSet::new();
    for (file, text) in files("ISSUE_TEMPLATE") {
        let form = parse(&text).remove(0);
        if file.ends_with("config.yml") {
            assert!(form["blank_issues_enabled"].is_boolean());
            continue;
        }
        let place = file.display();
        assert!(form["name"].is_string() && form["description"].is_string(), "{place}");
        let mut ids = BTreeSet::new();
        for field in form["body"].as_array().expect("fields") {
            let kind = field["type"].as_str().expect("a type");
            let known = ["markdown", "textarea", "input", "dropdown", "checkboxes"];
            assert!(known.contains(&kind), "{place}: {kind}");
            if kind == "markdown" {
                assert!(field["attributes"]["value"].is_string(), "{place}");
                continue;
            }
            let id = field["id"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{place}: {id} twice");
            assert!(field["attributes"]["label"].is_string(), "{place}: {id}");
            if field["validations"]["required"] == true {
                required.insert((file.file_stem().expect("a name").to_owned(), id.to_owned()));
            }
        }
    }
    for id in ["probe", "envoy", "configuration"] {
        assert!(required.contains(&("close".into(), id.into())), "{id} is not asked for");
    }
}

/// The versions of one release of Istio, chosen by hand.
const PINNED: &str = "tests/istio/go.mod";

/// Every lock file and list of dependencies is looked after.
#[test]
fn dependabot_knows_every_list() {
    let config = yaml(".github/dependabot.yml");
    let mut known = BTreeSet::new();
    for update in config["updates"].as_array().expect("updates") {
        let ecosystem = update["package-ecosystem"].as_str().expect("a name");
        let one = update["directory"].as_str();
        let several = update["directories"].as_array().into_iter().flatten();
        for folder in one.into_iter().chain(several.filter_map(Value::as_str)) {
            let name = match ecosystem {
                "cargo" => "Cargo.toml",
                "npm" => "package.json",
                "gomod" => "go.mod",
                "pip" => "requirements.txt",
                "maven" => "pom.xml",
                "docker" => "Dockerfile",
                "github-actions" => ".github/workflows/ci.yml",
                other => panic!("{other}"),
            };
            let file = fetch::root().join(folder.trim_start_matches('/')).join(name);
            assert!(file.is_file(), "{ecosystem}: no {}", file.display());
            known.insert(file);
        }
    }
    let listed = Command::new("git").current_dir(fetch::root()).arg("ls-files").output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        fetch::notice("SKIPPED the lists that dependabot does not know: this is no clone");
        return;
    };
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = file.rsplit('/').next().expect("a name");
        let list =
            ["package.json", "go.mod", "requirements.txt", "pom.xml", "Dockerfile", "Cargo.lock"];
        if list.contains(&name) && file != PINNED {
            let path = fetch::root().join(file.replace("Cargo.lock", "Cargo.toml"));
            assert!(known.contains(&path), "dependabot does not look after {file}");
        }
    }
}
