//! The Secrets that a CA is made from (pure): our own `culvert-ca` with the state of its rotation, and
//! Istio's `cacerts`.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::ObjectMeta;

use crate::ca::Material;

/// Our own root.
pub const OWN: &str = "culvert-ca";
/// A given intermediate; wins over our own root.
pub const GIVEN: &str = "cacerts";

const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
const NEXT_CERT: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const PREVIOUS: &str = "previous-cert.pem";
const PHASE: &str = "culvert.dev/rotation-phase";
const SINCE: &str = "culvert.dev/rotation-since";
/// Any new value of this annotation asks for another root.
pub const ROTATE: &str = "culvert.dev/rotate";
const ROTATED: &str = "culvert.dev/rotated";

/// Where a root's rotation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// One root, which signs.
    Steady,
    /// The next root is in the bundle and does not sign yet.
    Adding(Material),
    /// The next root signs; the one before (its certificate) is still in the bundle.
    Removing(String),
}

/// What `culvert-ca` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRoot {
    /// What signs, with the bundle.
    pub material: Material,
    /// Rotation.
    pub phase: Phase,
    /// When the phase began, seconds since 1970; 0 when it is not known.
    pub since: i64,
    /// The value that asks for a rotation, if it was not followed yet.
    pub asked: Option<String>,
}

impl OwnRoot {
    /// Reads the Secret.
    ///
    /// # Errors
    /// A key is missing or no text.
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let (cert, key) = (text(secret, OWN, CERT)?, text(secret, OWN, KEY)?);
        let roots = text(secret, OWN, ROOTS)?;
        let note = |name: &str| secret.metadata.annotations.as_ref()?.get(name).cloned();
        let phase = match note(PHASE).as_deref() {
            None | Some("") => Phase::Steady,
            Some("adding") => {
                Phase::Adding(Material::root(text(secret, OWN, NEXT_CERT)?, text(secret, OWN, NEXT_KEY)?))
            }
            Some("removing") => Phase::Removing(text(secret, OWN, PREVIOUS)?),
            Some(other) => return Err(format!("Secret {OWN}: annotation {PHASE}: {other:?} is no phase")),
        };
        let asked = note(ROTATE).filter(|value| !value.is_empty() && Some(value) != note(ROTATED).as_ref());
        let since = note(SINCE).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self { material: Material { roots, ..Material::root(cert, key) }, phase, since, asked })
    }

    /// A first root.
    pub fn new(root: Material) -> Self {
        Self { material: root, phase: Phase::Steady, since: 0, asked: None }
    }

    /// The Secret that says this, as the successor of another: what is not ours in that one stays.
    pub fn write(&self, before: Option<Secret>) -> Secret {
        let mut secret = before.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(OWN.into()),
                labels: Some([("app.kubernetes.io/part-of".to_string(), "culvert".to_string())].into()),
                ..ObjectMeta::default()
            },
            type_: Some("culvert.dev/ca".into()),
            ..Secret::default()
        });
        let data = secret.data.get_or_insert_default();
        let mut put = |name: &str, text: Option<&String>| match text {
            Some(text) => drop(data.insert(name.into(), ByteString(text.clone().into_bytes()))),
            None => drop(data.remove(name)),
        };
        put(CERT, Some(&self.material.cert));
        put(KEY, Some(&self.material.key));
        put(ROOTS, Some(&self.material.roots));
        let (next, previous, phase) = match &self.phase {
            Phase::Steady => (None, None, None),
            Phase::Adding(next) => (Some(next), None, Some("adding")),
            Phase::Removing(previous) => (None, Some(previous), Some("removing")),
        };
        put(NEXT_CERT, next.map(|next| &next.cert));
        put(NEXT_KEY, next.map(|next| &next.key));
        put(PREVIOUS, previous);
        let notes = secret.metadata.annotations.get_or_insert_default();
        let asked = notes.get(ROTATE).cloned();
        let mut note = |name: &str, value: Option<String>| match value {
            Some(value) => drop(notes.insert(name.into(), value)),
            None => drop(notes.remove(name)),
        };
        note(PHASE, phase.map(Into::into));
        note(SINCE, phase.map(|_| self.since.to_string()));
        // What was asked for is being done, or still to do.
        if self.asked.is_none() && asked.is_some() {
            note(ROTATED, asked);
        }
        secret
    }
}

/// Reads `cacerts` with Istio's keys.
///
/// # Errors
/// A key is missing or no text.
pub fn given(secret: &Secret) -> Result<Material, String> {
    let (cert, key) = (text(secret, GIVEN, CERT)?, text(secret, GIVEN, KEY)?);
    let roots = text(secret, GIVEN, ROOTS)?;
    // Istio's chain begins with the signing certificate itself, ours goes on behind it.
    let chain: Vec<String> = match data(secret).get(CHAIN) {
        Some(_) => certificates(&text(secret, GIVEN, CHAIN)?),
        None => Vec::new(),
    };
    let known: Vec<String> = certificates(&cert).into_iter().chain(certificates(&roots)).collect();
    let chain: String = chain.into_iter().filter(|c| !known.contains(c)).collect();
    let own = certificates(&roots).iter().any(|root| certificates(&cert).first() == Some(root));
    Ok(Material { cert, key, chain: Some(chain).filter(|c| !c.is_empty()), roots, own })
}

/// Bundles as one, each root once, in order.
pub fn bundle<'a>(of: impl IntoIterator<Item = &'a str>) -> String {
    let mut all: Vec<String> = Vec::new();
    for root in of.into_iter().flat_map(certificates) {
        if !all.contains(&root) {
            all.push(root);
        }
    }
    all.concat()
}

/// The certificates of a PEM text, each as a text of its own: what is between them is left out.
pub fn certificates(pem: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split(BEGIN).skip(1);
    let body = parts.filter_map(|part| part.split_once(END)).map(|(body, _)| {
        let lines: Vec<&str> = body.split_whitespace().collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    });
    body.collect()
}

fn data(secret: &Secret) -> &BTreeMap<String, ByteString> {
    static EMPTY: BTreeMap<String, ByteString> = BTreeMap::new();
    secret.data.as_ref().unwrap_or(&EMPTY)
}

fn text(secret: &Secret, name: &str, key: &str) -> Result<String, String> {
    let bytes = data(secret).get(key).ok_or_else(|| format!("Secret {name}: key {key} is missing"))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| format!("Secret {name}: key {key} is no text"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ca::root;

    #[test]
    fn what_is_written_is_read_back_in_every_phase_and_what_is_not_ours_stays() {
        let (one, two) = (root("a").unwrap(), root("b").unwrap());
        let mut own = OwnRoot::new(one);
        let mut secret = own.write(None);
        secret.metadata.annotations.get_or_insert_default().insert("theirs".into(), "kept".into());
        for phase in [Phase::Adding(two.clone()), Phase::Removing(two.cert), Phase::Steady] {
            own.since = if phase == Phase::Steady { 0 } else { 7 };
            own.phase = phase;
            secret = own.write(Some(secret));
            assert_eq!(OwnRoot::read(&secret).unwrap(), own);
        }
        assert_eq!(secret.metadata.annotations.as_ref().unwrap().get("theirs").unwrap(), "kept");
        assert!(!secret.data.as_ref().unwrap().contains_key(NEXT_KEY), "no key is left behind");
        for key in [CERT, KEY, ROOTS] {
            let mut bad = secret.clone();
            bad.data.as_mut().unwrap().remove(key);
            let error = OwnRoot::read(&bad).unwrap_err();
            assert!(error.contains(OWN) && error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_rotation_is_asked_for_once_per_value() {
        let mut own = OwnRoot::new(root("a").unwrap());
        let mut secret = own.write(None);
        let ask = |secret: &mut Secret, value: &str| {
            secret.metadata.annotations.get_or_insert_default().insert(ROTATE.into(), value.into());
        };
        ask(&mut secret, "1");
        assert_eq!(OwnRoot::read(&secret).unwrap().asked.as_deref(), Some("1"));
        own.asked = None;
        secret = own.write(Some(secret));
        assert_eq!(OwnRoot::read(&secret).unwrap().asked, None);
        ask(&mut secret, "2");
        assert_eq!(OwnRoot::read(&secret).unwrap().asked.as_deref(), Some("2"));
    }

    #[test]
    fn a_bundle_holds_each_root_once_however_it_is_written() {
        let (one, two) = (root("a").unwrap().cert, root("b").unwrap().cert);
        let odd = format!("subject: a\r\n{}", one.replace('\n', "\r\n"));
        let all = bundle([one.as_str(), &odd, &two, ""]);
        assert_eq!(certificates(&all).len(), 2);
        assert_eq!(all, bundle([all.as_str()]), "and it stays as it is");
    }
}
