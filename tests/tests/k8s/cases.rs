//! The cases, in the order in which they run.

mod away;
mod check;
mod kiali;
mod killed;
mod label;
mod many;
mod migrate;
mod node;
mod pods;
mod probes;
mod reboot;
mod restart;
mod reuse;
mod rights;
mod rotation;
mod services;
mod tutorial;
mod uninstall;
mod upgrade;
mod validation;
mod waypoint;
mod ztunnel;

use crate::Case;

macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => { &[$((stringify!($case), $module::$case)),*] };
}

/// Every case by its name. `rights` looks at what those before it made the programs do.
pub const ALL: &[Case] = cases![
    tutorial::a_labelled_namespace_gets_ninety_to_ten_through_a_waypoint_as_the_tutorial_says,
    probes::every_kind_of_probe_passes_under_strict_while_a_client_outside_the_mesh_is_refused,
    label::a_label_that_comes_or_goes_resets_no_connection,
    pods::init_containers_jobs_several_containers_and_host_network_behave_as_documented,
    services::every_kind_of_service_is_reached_and_ports_of_nodes_are_plaintext,
    kiali::metrics_of_waypoint_and_agents_keep_the_contract_with_kiali,
    waypoint::a_waypoint_is_made_for_a_route_listed_and_removed_with_the_last_route,
    validation::mistakes_are_refused_when_written_and_let_in_while_nobody_can_judge_them,
    check::culvert_check_finds_nothing_wrong_and_status_names_every_pod_of_ours,
    restart::control_plane_and_waypoint_are_replaced_under_load_without_a_failed_request,
    upgrade::an_upgrade_and_a_downgrade_under_load_replace_every_part_and_leak_nothing,
    away::the_api_server_may_be_away_under_load_and_what_is_applied_after_its_return_counts,
    reuse::a_pod_with_a_used_address_has_its_own_identity,
    rotation::the_root_is_rotated_under_load_without_a_failed_request,
    reboot::a_node_that_reboots_sends_no_plaintext_and_its_pods_recover,
    node::init_containers_and_jobs_use_the_mesh_from_their_first_request_and_probes_work_under_strict,
    node::pods_that_start_while_the_agent_is_away_are_blocked_and_recover_by_themselves,
    many::a_hundred_pods_on_a_node_are_enrolled_and_answer,
    killed::each_component_killed_at_random_under_load_leaves_traffic_whole,
    rights::the_programs_use_what_they_are_granted_and_nothing_was_refused,
    uninstall::culvert_is_removed_without_a_trace_and_installed_again,
];

/// Cases with our agent on the first node and Istio's agents on the second.
pub const BESIDE_ZTUNNEL: &[Case] = cases![
    ztunnel::ztunnel_under_our_control_plane_and_our_agent_carry_traffic_both_ways_by_hbone,
    ztunnel::a_policy_that_denies_a_principal_counts_at_ztunnel_as_at_our_agent_until_it_is_gone,
    ztunnel::clients_and_versions_under_ztunnel_take_part_in_a_route_through_our_waypoint,
    ztunnel::ztunnel_goes_on_with_the_next_control_plane_and_refuses_nothing,
];

/// Cases that begin with Istio's control plane and agents alone.
pub const FROM_ISTIO: &[Case] =
    cases![migrate::a_cluster_moves_from_istio_ambient_node_by_node_as_the_page_says];
