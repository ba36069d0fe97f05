//! Namespaces of pods: a `/proc` that a test makes, with real namespaces behind it.

use std::{
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
};

use super::*;

/// A process in a network namespace of its own, with an address.
struct Sandbox(Child);

impl Sandbox {
    fn new(address: &str) -> Self {
        let script =
            format!("ip addr add {address} dev lo && ip link set lo up && echo up && exec sleep 1000");
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        Self(child)
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn file(&self) -> File {
        File::open(self.netns()).unwrap()
    }

    fn id(&self) -> (u64, u64) {
        Held::new(self.file()).unwrap().id()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[allow(clippy::disallowed_methods, reason = "whether this test may be skipped")]
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
    assert!(root || !required, "{test} must run: CULVERT_REQUIRE lists root");
    if !root {
        println!("SKIP {test}: needs root");
    }
    root
}

/// A `/proc` with the processes that a test puts there.
struct Proc(tempfile::TempDir);

impl Proc {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, pid: u32, started: u64, group: &str, netns: &Path) {
        let dir = self.0.path().join(pid.to_string());
        std::fs::create_dir_all(dir.join("ns")).unwrap();
        std::fs::write(dir.join("cgroup"), format!("0::{group}\n")).unwrap();
        let zeros = "0 ".repeat(18);
        std::fs::write(dir.join("stat"), format!("{pid} (a) b) S {zeros}{started} 0 0\n")).unwrap();
        symlink(netns, dir.join("ns/net")).unwrap();
    }

    fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.0.path().into(), "/proc/self/ns/net".as_ref())
    }
}

fn id(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn wanted(container: char, address: &str) -> Wanted {
    Wanted {
        uids: vec![format!("uid-{container}").into()],
        containers: [id(container)].into(),
        addresses: vec![address.parse().unwrap()],
        sought: true,
    }
}

fn found(sandboxes: &Sandboxes, wanted: &Wanted) -> Result<(u64, u64), String> {
    let answer = sandboxes.find(std::slice::from_ref(wanted)).remove(0);
    answer.map(|network| network.netns.id()).map_err(|why| why.to_string())
}

#[test]
fn a_pods_namespace_is_that_of_its_oldest_process_and_has_its_address() {
    if !root("a_pods_namespace_is_that_of_its_oldest_process_and_has_its_address") {
        return;
    }
    let (one, other, proc) = (Sandbox::new("10.9.0.1/32"), Sandbox::new("10.9.0.2/32"), Proc::new());
    let sandboxes = proc.sandboxes();
    let pod = wanted('a', "10.9.0.1");
    assert!(found(&sandboxes, &pod).unwrap_err().contains("none of its processes"));
    // A process of another pod that sits in its namespace is none of its own, and one of its own that sits
    // in another pod's namespace does not lead there.
    proc.put(10, 5, &format!("/k8s.io/{}", id('b')), &one.netns());
    proc.put(11, 6, &format!("/k8s.io/{}", id('a')), &other.netns());
    assert!(found(&sandboxes, &pod).unwrap_err().contains("process 11 lacks an address"));
    proc.put(12, 9, &format!("/k8s.io/{}", id('a')), Path::new("/proc/self/ns/net"));
    assert!(found(&sandboxes, &pod).unwrap_err().contains("node's network namespace"));
    proc.put(13, 8, &format!("/k8s.io/{}/{}", id('a'), id('c')), &one.netns());
    assert_eq!(found(&sandboxes, &pod), Ok(one.id()));
    // With two namespaces that have it, the older process's.
    let twin = Sandbox::new("10.9.0.1/32");
    proc.put(9, 3, &format!("/k8s.io/{}", id('a')), &twin.netns());
    assert_eq!(found(&sandboxes, &pod), Ok(one.id()), "the question is the same, and so is the answer");
    let restarted = Wanted { containers: [id('a'), id('d')].into(), ..pod };
    assert_eq!(found(&sandboxes, &restarted), Ok(twin.id()));
}

#[test]
fn a_namespace_outlives_the_process_that_it_was_found_by_and_not_its_address() {
    if !root("a_namespace_outlives_the_process_that_it_was_found_by_and_not_its_address") {
        return;
    }
    let (one, proc) = (Sandbox::new("10.9.0.1/32"), Proc::new());
    let sandboxes = proc.sandboxes();
    proc.put(10, 5, &format!("/kubepods/pod{}/x", "0f0e0d0c-1111-2222-3333-444455556666"), &one.netns());
    let mut pod = wanted('a', "10.9.0.1");
    pod.uids = vec!["0f0e0d0c-1111-2222-3333-444455556666".into()];
    assert_eq!(found(&sandboxes, &pod), Ok(one.id()), "by the pod's own group");
    std::fs::remove_dir_all(proc.0.path().join("10")).unwrap();
    let crashed = Wanted { containers: [id('b')].into(), ..pod };
    assert_eq!(found(&sandboxes, &crashed), Ok(one.id()));
    let elsewhere = Wanted { addresses: vec!["10.9.0.7".parse().unwrap()], ..crashed.clone() };
    assert!(found(&sandboxes, &elsewhere).is_err());
    sandboxes.keep_only(&BTreeSet::new());
    assert!(found(&sandboxes, &crashed).is_err(), "nothing is held for a pod that is gone");
}

#[test]
fn the_plugins_word_comes_before_the_api_servers_and_is_kept_for_the_next_agent() {
    if !root("the_plugins_word_comes_before_the_api_servers_and_is_kept_for_the_next_agent") {
        return;
    }
    let (one, proc) = (Sandbox::new("10.9.0.1/32"), Proc::new());
    let sandboxes = proc.sandboxes();
    let mut early = wanted('a', "10.9.0.1");
    early.addresses.clear();
    assert!(found(&sandboxes, &early).unwrap_err().contains("no address yet"));
    let addresses = vec!["10.9.0.1".parse().unwrap()];
    assert!(
        sandboxes.told("uid-a".into(), File::open("/proc/self/ns/net").unwrap(), addresses.clone()).is_err()
    );
    sandboxes.told("uid-a".into(), one.file(), addresses.clone()).unwrap();
    let network = sandboxes.find(std::slice::from_ref(&early)).remove(0).unwrap();
    assert_eq!((network.netns.id(), &network.addresses), (one.id(), &addresses));
    assert_eq!(found(&sandboxes, &wanted('a', "10.9.0.1")), Ok(one.id()));
    // Another pod that claims the uid does not get the namespace: its address is not there.
    let liar = Wanted { uids: vec!["uid-b".into(), "uid-a".into()], ..wanted('b', "10.9.0.9") };
    assert!(found(&sandboxes, &liar).is_err());

    let folder = tempfile::tempdir().unwrap();
    let records = Records::new(folder.path().join("sandboxes"));
    let record = Record {
        container: id('f'),
        interface: "eth0".into(),
        namespace: "shop".into(),
        name: "web".into(),
        uid: "uid-a".into(),
        netns: one.netns(),
        cookie: netns::cookie(&one.file()).unwrap(),
        addresses,
    };
    records.put(&record).unwrap();
    assert_eq!((records.get(&id('f'), "eth0"), records.all().len()), (Some(record.clone()), 1));
    let next = proc.sandboxes();
    next.recall(&records);
    assert_eq!(found(&next, &early), Ok(one.id()));
    records.put(&Record { cookie: record.cookie + 1, ..record.clone() }).unwrap();
    let later = proc.sandboxes();
    later.recall(&records);
    assert!(found(&later, &early).is_err(), "another namespace is at that path by now");
    records.remove(&id('f'), "eth0").unwrap();
    assert!(records.all().is_empty() && records.remove(&id('f'), "eth0").is_ok());
    let odd = Record { container: "../up".into(), ..record };
    assert!(records.put(&odd).is_err() && records.get("../up", "eth0").is_none());
}
