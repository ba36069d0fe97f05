//! The node runner: stands in for scheduler and kubelet. It turns Deployments into pods with the
//! real programs, reports them as Pod objects, and writes the pods' hosts files from the services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    manifest, net,
    process::Process,
    wait,
    world::{Pod, World},
};

/// Label of every pod of a Deployment.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// How long a waypoint may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// Makes the pods that Deployments ask for and that do not exist yet, and removes those whose
/// Deployment is gone; returns the names of the new ones.
pub fn reconcile(world: &mut World) -> Result<Vec<String>> {
    let mut made = Vec::new();
    let mut wanted = BTreeSet::new();
    for deployment in manifest::objects(&world.cluster(), "Deployment") {
        let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or("default").to_string();
        let name = deployment["metadata"]["name"].as_str().context("a deployment has a name")?.to_string();
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        for replica in 0..replicas {
            let pod = format!("{name}-0-{replica}");
            wanted.insert(format!("{namespace}/{pod}"));
            if !world.pods.contains_key(&format!("{namespace}/{pod}")) {
                start(world, &namespace, &pod, &format!("{name}-0"), &deployment)?;
                made.push(format!("{namespace}/{pod}"));
            }
        }
    }
    // What cannot be read may be what asks for them.
    if manifest::is_readable(&world.cluster()) {
        remove_unwanted(world, &wanted)?;
    }
    world.save()?;
    Ok(made)
}

fn remove_unwanted(world: &mut World, wanted: &BTreeSet<String>) -> Result<()> {
    let ours = |pod: &Pod| pod.labels.contains_key(TEMPLATE_HASH);
    let gone: Vec<Pod> = world
        .pods
        .iter()
        .filter(|(key, pod)| ours(pod) && !wanted.contains(*key))
        .map(|(_, pod)| pod.clone())
        .collect();
    gone.iter().try_for_each(|pod| world.delete_pod(&pod.namespace, &pod.name))
}

/// Node for a pod: named by the template's `nodeName`, else the next in turn.
fn node_for(world: &World, spec: &Value) -> u8 {
    let turn = u8::try_from(world.pods.len() % usize::from(world.nodes)).unwrap_or(0);
    let Some(name) = spec["nodeName"].as_str() else { return turn };
    (0..world.nodes).find(|index| name == format!("node-{}", char::from(b'a' + index))).unwrap_or(turn)
}

fn start(world: &mut World, namespace: &str, name: &str, owner: &str, deployment: &Value) -> Result<()> {
    let template = &deployment["spec"]["template"];
    let spec = &template["spec"];
    let account = spec["serviceAccountName"].as_str().unwrap_or("default");
    let node = node_for(world, spec);
    let mut pod = world.add_pod(namespace, name, node, account)?;
    pod.labels = labels(&template["metadata"]["labels"]);
    // As the deployment controller does; names of workloads come from it.
    pod.labels.insert(TEMPLATE_HASH.to_string(), "0".to_string());
    world.pods.insert(format!("{namespace}/{name}"), pod.clone());
    let container = spec["containers"][0].clone();
    let file = format!("pods/{}/{namespace}.{name}.yaml", pod.node_name());
    // As a kubelet: the object is there before the program, and ready when the probe says so.
    world.write(&file, &manifest::pod(&pod, Some(owner), &container, false))?;
    launch(world, &pod, deployment, &container)?;
    if container["image"].as_str().is_some_and(|image| image.contains("waypoint")) {
        wait::until(READY, &format!("{namespace}/{name} to be ready"), || {
            pod.exec(&["curl", "-sSf", "http://127.0.0.1:15020/readyz"]).ok().map(drop)
        })?;
    }
    world.write(&file, &manifest::pod(&pod, Some(owner), &container, true))
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_string())).collect()
}

/// Starts the program that an image stands for. Images without a program here only idle.
fn launch(world: &mut World, pod: &Pod, deployment: &Value, container: &Value) -> Result<()> {
    let image = container["image"].as_str().unwrap_or_default();
    let process = if image.contains("nginx") {
        Some(nginx(world, pod, container)?)
    } else if image.contains("waypoint") {
        Some(waypoint(world, pod, deployment)?)
    } else {
        None
    };
    if let Some(process) = process {
        world.running.insert(format!("{}/{}", pod.namespace, pod.name), process);
    }
    Ok(())
}

/// Real nginx with the container's own command, in a mount namespace with its own pages.
fn nginx(world: &World, pod: &Pod, container: &Value) -> Result<Process> {
    let home = world.root.join("pods").join(format!("{}.{}", pod.namespace, pod.name));
    fs::create_dir_all(home.join("html"))?;
    fs::create_dir_all(home.join("tmp"))?;
    fs::write(home.join("html/index.html"), "Welcome to nginx!\n")?;
    fs::write(home.join("nginx.conf"), nginx_conf(&home))?;
    let default = [json!("nginx"), json!("-g"), json!("daemon off;")];
    let words = |field: &str| container[field].as_array().cloned().unwrap_or_default();
    let mut line = words("command");
    line.extend(words("args"));
    if line.is_empty() {
        line.extend(default);
    }
    let script = format!(
        "mount --bind {home}/html /usr/share/nginx/html && \
         mount --bind {home}/nginx.conf /etc/nginx/nginx.conf && exec \"$@\"",
        home = home.display()
    );
    let mut command = pod.command("sh")?;
    command.args(["-c", &script, "sh"]).args(line.iter().filter_map(Value::as_str));
    Process::spawn(&mut command, &world.log_file(&format!("{}.{}", pod.namespace, pod.name)))
}

fn nginx_conf(home: &Path) -> String {
    let home = home.display();
    format!(
        "user root;\nworker_processes 1;\npid {home}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n\
         log_format seen '$remote_addr $status $request';\naccess_log {home}/access.log seen;\n\
         client_body_temp_path {home}/tmp/body;\nproxy_temp_path {home}/tmp/proxy;\n\
         fastcgi_temp_path {home}/tmp/fastcgi;\nuwsgi_temp_path {home}/tmp/uwsgi;\n\
         scgi_temp_path {home}/tmp/scgi;\nkeepalive_requests 1000000;\n\
         server {{ listen 80; listen [::]:80; root /usr/share/nginx/html;\n\
         location = /fixed {{ access_log off; return 200 'hello from the server\\n'; }} }}\n}}\n"
    )
}

/// Our waypoint, as the Deployment that `control` wrote asks for it.
fn waypoint(world: &World, pod: &Pod, deployment: &Value) -> Result<Process> {
    let name = deployment["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"]
        .as_str()
        .unwrap_or("waypoint");
    let client = format!("{}.{}", pod.namespace, pod.service_account);
    let token = format!("{}-{client}", world.id);
    fs::write(world.token_file(&client), &token)?;
    let tokens = world.root.join("tokens.yaml");
    let mut text = fs::read_to_string(&tokens)?;
    let line = format!("{token}: {}/{}\n", pod.namespace, pod.service_account);
    if !text.contains(&line) {
        text.push_str(&line);
        fs::write(&tokens, text)?;
    }
    let program = world.programs.join("culvert-waypoint");
    let mut command = pod.command(&program.to_string_lossy())?;
    command.args(["--control", &world.control_url()]).arg("--ca-root").arg(world.ca_root());
    command.arg("--token-file").arg(world.token_file(&client));
    command.args(["--namespace", &pod.namespace, "--name", name]);
    command.args(["--service-account", &pod.service_account, "--admin", "0.0.0.0:15020"]);
    command.args(["--pod-ip", &pod.ip, "--pod-name", &pod.name]);
    command.args(["--node", &pod.node_name()]);
    Process::spawn(&mut command, &world.log_file(&format!("{}.{}", pod.namespace, pod.name)))
}

/// The file in which a pod's nginx says whom it served.
pub fn access_log(world: &World, pod: &Pod) -> String {
    let home = world.root.join("pods").join(format!("{}.{}", pod.namespace, pod.name));
    fs::read_to_string(home.join("access.log")).unwrap_or_default()
}

/// Gives every pod a hosts file with the services' addresses; there is no DNS yet.
pub fn write_hosts(world: &World) -> Result<usize> {
    let services: Value = serde_json::from_str(&world.control_get("/debug/services")?)?;
    let list = services.as_array().or_else(|| services["services"].as_array()).cloned().unwrap_or_default();
    for pod in world.pods.values() {
        let mut names = Vec::new();
        for service in &list {
            names.extend(host_names(service, &pod.namespace));
        }
        net::hosts(&pod.netns, &names)?;
    }
    Ok(list.len())
}

fn host_names(service: &Value, namespace: &str) -> Vec<(String, String)> {
    let text = |field: &str| service[field].as_str().unwrap_or_default().to_string();
    let (name, of) = (text("name"), text("namespace"));
    let vip = [&service["vip"], &service["vips"][0], &service["clusterIP"], &service["addresses"][0]]
        .into_iter()
        .find_map(Value::as_str);
    let Some(vip) = vip else { return Vec::new() };
    let mut names = vec![
        (vip.to_string(), format!("{name}.{of}")),
        (vip.to_string(), format!("{name}.{of}.svc")),
        (vip.to_string(), format!("{name}.{of}.svc.cluster.local")),
    ];
    if of == namespace {
        names.push((vip.to_string(), name));
    }
    names
}

/// Whether the pod's agent has marked it as captured.
pub fn is_enrolled(world: &World, pod: &Pod) -> bool {
    let file = format!("pods/{}/{}.{}.yaml", pod.node_name(), pod.namespace, pod.name);
    let text = fs::read_to_string(world.cluster().join(file)).unwrap_or_default();
    serde_norway::from_str::<Value>(&text)
        .is_ok_and(|object| object["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled")
}
