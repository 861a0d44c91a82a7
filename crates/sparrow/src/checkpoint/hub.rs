//! `--model org/name[/FILE.gguf][@revision]`: the hub's standard cache, filled through the `hf-hub` crate.

use std::path::{Path, PathBuf};

use super::gguf::Gguf;
use crate::error::{Error, Result};

/// Where a model is: `model` itself if it is a directory or a file, else the hub's snapshot of `org/name[@revision]`, or the file of
/// it that `org/name/FILE.gguf[@revision]` names.
///
/// # Errors
/// If `model` is none of these, or the hub cannot be reached and the cache does not hold it.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    match HubId::of(model).filter(|_| !path.exists()) {
        Some(id) => {
            if [id.revision, id.file.unwrap_or_default()].iter().any(|name| is_elsewhere(name))
                || id.revision.is_empty()
            {
                return Err(Error::Hub(format!("{model}: what follows @ must be a branch, a tag or a commit")));
            }
            fetch(model, &id)
        }
        None => {
            if !Gguf::is_at(path) {
                super::require_dir(path)?;
            }
            Ok(path.to_owned())
        }
    }
}

/// What a hub id names.
struct HubId<'a> {
    /// `org/name`.
    repository: &'a str,
    /// A GGUF file in it; otherwise it is the whole.
    file: Option<&'a str>,
    /// A branch, a tag or a commit.
    revision: &'a str,
}

impl<'a> HubId<'a> {
    /// What `model` names, if it looks like an id.
    fn of(model: &'a str) -> Option<Self> {
        let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
        let part = |part: &str| {
            let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(letter)
        };
        let mut parts = name.splitn(3, '/');
        let (organisation, repository, file) = (parts.next()?, parts.next()?, parts.next());
        let fits = part(organisation) && part(repository) && file.is_none_or(|file| file.split('/').all(part));
        let is_gguf = file.is_none_or(|file| file.to_ascii_lowercase().ends_with(".gguf"));
        let repository = &name[..organisation.len() + 1 + repository.len()];
        (fits && is_gguf).then_some(HubId { repository, file, revision })
    }
}

/// Whether a name could lead out of its folder.
fn is_elsewhere(name: &str) -> bool {
    name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..")
}

#[cfg(not(feature = "hub"))]
fn fetch(model: &str, id: &HubId) -> Result<PathBuf> {
    Err(Error::Hub(format!(
        "{model} is neither a directory nor a file, and this build has no hub support (feature \"hub\"): download {} and pass \
         where it is",
        id.repository
    )))
}

/// What the environment says of the hub, in the words and the order of Python's `huggingface_hub`.
#[cfg(feature = "hub")]
#[derive(Debug)]
struct HubSettings {
    cache: PathBuf,
    /// The variable that forbids to ask the hub.
    offline: Option<&'static str>,
    token: Option<String>,
    endpoint: Option<String>,
}

#[cfg(feature = "hub")]
impl HubSettings {
    /// `variable` reads the environment; what is empty counts as unset.
    fn read(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());
        let user = set("HOME").or(set("USERPROFILE")).map_or_else(|| PathBuf::from("."), PathBuf::from);
        // `~` is left to programs where a variable is set in a file rather than in a shell.
        let path = |name| {
            let path = PathBuf::from(set(name)?);
            Some(path.strip_prefix("~").map_or(path.clone(), |below| user.join(below)))
        };
        let base = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| base.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or(path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let yes = |value: &String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| set(name).is_some());
        let kept = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or(text("HUGGING_FACE_HUB_TOKEN")).or_else(|| std::fs::read_to_string(kept).ok());
        HubSettings {
            cache,
            offline: offline.filter(|name| text(name).as_ref().is_some_and(yes)),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            endpoint: text("HF_ENDPOINT"),
        }
    }
}

/// How long the hub may take to say which files a model has.
#[cfg(feature = "hub")]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(feature = "hub")]
fn fetch(model: &str, id: &HubId) -> Result<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Cache, Repo, RepoType};

    let HubId { repository, file, revision } = *id;
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let settings = HubSettings::read(|name| std::env::var_os(name));
    let cache = Cache::new(settings.cache);
    let snapshots = cache.path().join(repo.folder_name()).join("snapshots");
    let hint = |reason: String| {
        Error::Hub(format!(
            "{model} is no {} here, and as a hub id: {reason}; offline, download the model elsewhere and pass its {}, or put it at \
             {}{}",
            if file.is_some() { "file" } else { "directory" },
            if file.is_some() { "path" } else { "directory" },
            snapshots.join(revision).join(file.unwrap_or_default()).display(),
            if file.is_some() { "" } else { " (config.json, *.safetensors, tokenizer.json)" },
        ))
    };
    // What is given back stands for all: the configuration, or the first part of a file.
    let parts = file.map(Gguf::parts);
    let first = parts.as_ref().map_or("config.json", |parts| parts[0].as_str());
    let located = |first: PathBuf| match file {
        Some(_) => Ok(first),
        None => first.parent().map(Path::to_owned).ok_or_else(|| hint("no snapshot".into())),
    };
    let by_revision = snapshots.join(revision).join(first);
    let in_cache = |name: &str| cache.repo(repo.clone()).get(name);
    let complete = |path: &Path| match &parts {
        Some(parts) => {
            parts.iter().all(|part| in_cache(part).is_some() || snapshots.join(revision).join(part).is_file())
        }
        None => super::Checkpoint::open(path).is_ok() && path.join("tokenizer.json").is_file(),
    };
    let cached = in_cache(first).or(Some(by_revision)).filter(|first| first.is_file()).map(located).transpose()?;
    let held = match cached {
        Some(path) if complete(&path) => return Ok(path),
        Some(path) => format!("the cache has only a part of it, at {}", path.display()),
        None => "not in the cache".to_owned(),
    };
    if let Some(variable) = settings.offline {
        return Err(hint(format!("{held}, and {variable} is set")));
    }
    let mut api = ApiBuilder::from_cache(cache.clone()).with_token(settings.token).with_progress(true).with_retries(0);
    if let Some(endpoint) = settings.endpoint {
        api = api.with_endpoint(endpoint);
    }
    let api = api.build().map_err(|e| hint(e.to_string()))?;
    // The client waits as long as the system does; where a firewall drops packets that is minutes.
    let (send, answer) = std::sync::mpsc::channel();
    let asked = api.repo(repo.clone());
    let asking = sparrow_kernels::start_thread("hub", move || send.send(asked.info()));
    asking.map_err(|e| hint(format!("{held}, and no thread could be started to ask the hub ({e})")))?;
    let silent = format!("{held}, and the hub did not answer within {} s", PATIENCE.as_secs());
    let info = answer.recv_timeout(PATIENCE).map_err(|_| hint(silent))?;
    let info = info.map_err(|e| hint(format!("{held}, and asking the hub failed ({e})")))?;
    let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    let wanted = |name: &&str| match &parts {
        Some(parts) => parts.iter().any(|part| part == name),
        None => !name.contains('/') && [".json", ".safetensors", ".jinja"].iter().any(|end| name.ends_with(end)),
    };
    if !names.contains(&first) {
        let ggufs = names.iter().filter(|name| name.ends_with(".gguf")).map(|name| format!("{repository}/{name}"));
        let mend = match ggufs.collect::<Vec<_>>() {
            ggufs if ggufs.is_empty() => String::new(),
            ggufs => format!("; it has {}", ggufs.join(", ")),
        };
        return Err(hint(format!("the repository has no {first}{mend}")));
    }
    let api = api.repo(repo);
    let mut found = None;
    for name in names.iter().filter(|name| wanted(name)) {
        let path = api.get(name).map_err(|e| hint(format!("downloading {name} failed ({e})")))?;
        if *name == first {
            found = Some(located(path)?);
        }
    }
    let found = found.ok_or_else(|| hint(format!("the repository has no {first}")))?;
    if file.is_none() {
        super::require_dir(&found)?;
    }
    Ok(found)
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        HubSettings::read(value)
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_looks() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "~/c", "/home/me/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home/me", "/home/me/.cache/huggingface/hub"),
        ];
        for (first, (_, _, cache)) in all.iter().enumerate() {
            let mut variables: Vec<_> = all[first..].iter().map(|&(name, value, _)| (name, value)).collect();
            assert_eq!(settings(&variables).cache, Path::new(cache));
            variables.insert(0, (all[first.saturating_sub(1)].0, if first > 0 { "" } else { "/a" }));
            assert_eq!(settings(&variables).cache, Path::new(cache), "what is empty counts as unset");
        }
    }

    #[test]
    fn offline_is_what_huggingface_hub_calls_so() {
        for (variables, offline) in [
            (&[][..], None),
            (&[("HF_HUB_OFFLINE", "1")][..], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "yes")], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "True")], Some("TRANSFORMERS_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], None),
            (&[("HF_HUB_OFFLINE", "false")], None),
        ] {
            assert_eq!(settings(variables).offline, offline, "{variables:?}");
        }
        assert_eq!(settings(&[("HF_TOKEN", " t\n"), ("HF_HOME", "/none")]).token.as_deref(), Some("t"));
    }
}
