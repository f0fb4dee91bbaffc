use super::*;

fn example() -> ServerConfig {
    let text = r#"
        node = 2
        data-dir = "/var/lib/shardhost"
        listen = "127.0.0.1:7402"
        [nodes]
        1 = "127.0.0.1:7401"
        2 = "127.0.0.1:7402"
        [shards]
        tables = 3
        queues = 2
    "#;
    toml::from_str(text).unwrap()
}

#[test]
fn every_node_derives_the_same_groups() {
    let second = example();
    let first = ServerConfig { node: 1, ..example() };
    first.validate().unwrap();
    assert_eq!(first.group_specs(), second.group_specs());
    assert_eq!(first.group_specs().len(), 5);
}

#[test]
fn replicas_are_compared_unless_that_is_switched_off() {
    let groups = example().host().groups;
    assert_eq!(groups.consistency_ticks, 36_000);
    assert_eq!(groups.consistency_hibernating, Some(Duration::from_secs(86_400)));
    let never =
        ServerConfig { consistency_check: 0, consistency_check_hibernating: 0, ..example() };
    let groups = never.host().groups;
    assert_eq!((groups.consistency_ticks, groups.consistency_hibernating), (0, None));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut ServerConfig)| {
        let mut config = example();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(refused(&|c| c.node = 0).contains("numbered from 1"));
    assert!(refused(&|c| c.node = 9).contains("not among them"));
    assert!(refused(&|c| c.workers = 0).contains("workers"));
    for seconds in [0, 604_801, u64::MAX] {
        assert!(refused(&|c| c.replace_after = seconds).contains("replace-after"));
    }
    for version in [0, ClusterVersion::NEWEST.get() + 1] {
        let refused = refused(&|c| c.cluster_version_max = version);
        assert!(refused.contains("cluster-version-max"), "{refused}");
    }
    assert!(refused(&|c| c.shards.queues = MAX_SHARDS + 1).contains("queues"));
    let same = refused(&|c| {
        c.nodes.insert("1".to_owned(), "127.0.0.1:7402".to_owned());
    });
    assert!(same.contains("both have the address"), "{same}");
    let twice = refused(&|c| {
        c.nodes.insert("01".to_owned(), "127.0.0.1:7409".to_owned());
    });
    assert!(twice.contains("node 1 is named twice"), "{twice}");
    let twice = refused(&|c| c.shards.voters = vec![1, 1]);
    assert!(twice.contains("voters") && twice.contains("node 1 is named twice"), "{twice}");
    let year = 365 * 24 * 60 * 60;
    type Seconds = fn(&mut ServerConfig) -> &mut u64;
    let seconds: [(&str, Seconds); 4] = [
        ("planner-warm-up", |c| &mut c.planner_warm_up),
        ("planner-rest", |c| &mut c.planner_rest),
        ("consistency-check", |c| &mut c.consistency_check),
        ("consistency-check-hibernating", |c| &mut c.consistency_check_hibernating),
    ];
    for (key, of) in seconds {
        for long in [year + 1, u64::MAX] {
            let refused = refused(&|c| *of(c) = long);
            assert!(refused.contains(key) && refused.contains("at most"), "{refused}");
        }
        let mut config = example();
        *of(&mut config) = year;
        config.validate().unwrap();
    }
    let port = refused(&|c| {
        c.nodes.insert("1".to_owned(), "somewhere".to_owned());
    });
    assert!(port.contains("host:port"), "{port}");
}

#[test]
fn clients_and_operators_have_listeners_of_their_own_where_the_configuration_says_so() {
    let text = "node = 1\ndata-dir = \"x\"\nlisten = \"127.0.0.1:7400\"\nalone = true\n";
    let parse = |more: &str| toml::from_str::<ServerConfig>(&format!("{text}{more}"));
    let host = parse("").unwrap().host();
    assert_eq!((host.client_listen, host.admin_listen), (None, None));
    let config = parse(
        "client-listen = \"localhost:7500\"\nclient-advertise = \"shop.example:75\"\n\
         admin-listen = \"127.0.0.2:7500\"\nadmin-advertise = \"office.example:75\"",
    );
    let config = config.unwrap();
    config.validate().unwrap();
    let host = config.host();
    assert_eq!(host.client_listen, Some("127.0.0.1:7500".parse().unwrap()));
    assert_eq!(host.client_advertise.as_deref(), Some("shop.example:75"));
    assert_eq!(host.admin_listen, Some("127.0.0.2:7500".parse().unwrap()));
    assert_eq!(host.admin_advertise.as_deref(), Some("office.example:75"));
    for key in ["client-listen", "admin-listen"] {
        let wrong = parse(&format!("{key} = \"shop.example:7500\"")).unwrap_err().to_string();
        assert!(wrong.contains("cannot listen on") && wrong.contains("line 5"), "{wrong}");
    }
}

/// The settings of a listener for some alone.
struct Apart {
    listen: fn(&mut ServerConfig) -> &mut Option<SocketAddr>,
    advertise: fn(&mut ServerConfig) -> &mut Option<String>,
    keys: [&'static str; 2],
}

const APART: [Apart; 2] = [
    Apart {
        listen: |config| &mut config.client_listen,
        advertise: |config| &mut config.client_advertise,
        keys: ["client-listen", "client-advertise"],
    },
    Apart {
        listen: |config| &mut config.admin_listen,
        advertise: |config| &mut config.admin_advertise,
        keys: ["admin-listen", "admin-advertise"],
    },
];

fn at(address: &str) -> Option<SocketAddr> {
    Some(address.parse().unwrap())
}

#[test]
fn an_address_for_clients_or_operators_that_makes_no_sense_is_refused_by_name() {
    for Apart { listen, advertise, keys: [listen_key, advertise_key] } in APART {
        let refused = |key: &str, change: &dyn Fn(&mut ServerConfig)| {
            let mut config = example();
            *listen(&mut config) = at("127.0.0.1:7502");
            config.validate().unwrap();
            change(&mut config);
            let refused = config.validate().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("`{key}`")), "{refused}");
            refused
        };
        let same = refused(listen_key, &|c| *listen(c) = Some(c.listen));
        assert!(same.contains("`listen`"), "{same}");
        let everywhere = refused(listen_key, &|c| {
            c.insecure = true;
            *listen(c) = at("0.0.0.0:7402");
        });
        assert!(everywhere.contains("`listen`"), "{everywhere}");
        let of_other = refused(listen_key, &|c| *listen(c) = at("127.0.0.1:7401"));
        assert!(of_other.contains("node 1"), "{of_other}");
        let of_own = refused(advertise_key, &|c| *advertise(c) = Some("127.0.0.1:7402".to_owned()));
        assert!(of_own.contains("node 2"), "{of_own}");
        for everywhere in ["0.0.0.0:7500", "[::]:7500"] {
            let nowhere = refused(advertise_key, &|c| *advertise(c) = Some(everywhere.to_owned()));
            assert!(nowhere.contains("cannot connect"), "{nowhere}");
        }
        let no_port = refused(advertise_key, &|c| *advertise(c) = Some("shop.example".to_owned()));
        assert!(no_port.contains("port"), "{no_port}");
        let alone = refused(advertise_key, &|c| {
            *listen(c) = None;
            *advertise(c) = Some("shop.example:7500".to_owned());
        });
        assert!(alone.contains(&format!("`{listen_key}`")), "{alone}");
        let open = refused(listen_key, &|c| *listen(c) = at("10.0.0.2:7500"));
        assert!(open.contains("--insecure"), "{open}");
        // Two free ports are two addresses.
        let mut free = ServerConfig::alone("data");
        (free.listen, *listen(&mut free)) = ("127.0.0.1:0".parse().unwrap(), at("127.0.0.1:0"));
        free.validate().unwrap();
    }
}

#[test]
fn operators_and_clients_do_not_share_a_listener_that_is_not_that_of_all() {
    let config = |client: &str, admin: &str| {
        let mut config = example();
        (config.client_listen, config.admin_listen) = (at(client), at(admin));
        config
    };
    config("127.0.0.1:7502", "127.0.0.1:7602").validate().unwrap();
    config("127.0.0.1:0", "127.0.0.1:0").validate().unwrap();
    let same = config("127.0.0.1:7502", "127.0.0.1:7502").validate().unwrap_err().to_string();
    assert!(same.starts_with("`client-listen`") && same.contains("`admin-listen`"), "{same}");
    let mut config = config("127.0.0.1:7502", "127.0.0.1:7602");
    config.client_advertise = Some("127.0.0.1:7602".to_owned());
    let same = config.validate().unwrap_err().to_string();
    assert!(same.starts_with("`client-advertise`") && same.contains("operators"), "{same}");
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for good in [
        "10.0.0.1:7400",
        "host-1.example.org:1",
        "host.example.org.:1",
        "[::1]:7400",
        "my_host:65535",
        "1a.2:7400",
    ] {
        check_address(good).unwrap();
    }
    for (bad, why) in [
        ("http://x", "scheme"),
        ("http://x:7400", "scheme"),
        ("x:7400/path", "path"),
        ("a b:1", "a host has"),
        ("::1:7400", "in brackets"),
        ("[::1:7400", "in brackets"),
        ("[x]:7400", "no IPv6 address"),
        (":7400", "a host has"),
        ("x", "port is missing"),
        ("x:", "1 to 65535"),
        ("x:+7", "1 to 65535"),
        ("x:0", "1 to 65535"),
        ("x:65536", "1 to 65535"),
        ("user@x:1", "a host has"),
        ("256.1.1.1:1", "IPv4 address"),
        ("10.0.1:1", "IPv4 address"),
        ("12:1", "IPv4 address"),
        (".:1", "IPv4 address"),
        ("x..y:1", "not empty"),
        (".x:1", "not empty"),
        ("x..:1", "not empty"),
        ("-x:1", "begin nor end"),
        ("x-.y:1", "begin nor end"),
    ] {
        let error = check_address(bad).unwrap_err().to_string();
        assert!(error.contains("host:port") && error.contains(why), "{bad}: {error}");
        let mut config = example();
        config.nodes.insert("1".to_owned(), bad.to_owned());
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.contains("that of node 1"), "{refused}");
    }
}

/// Each node would take it for itself.
#[test]
fn a_node_is_reached_at_an_address_of_its_own() {
    for everywhere in ["0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400"] {
        let mut config = example();
        config.nodes.insert("1".to_owned(), everywhere.to_owned());
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.contains("that of node 1"), "{refused}");
        assert!(refused.contains("all addresses of a machine"), "{refused}");
    }
}

#[test]
fn shards_are_created_with_what_their_kind_requires() {
    let text = r#"
        node = 1
        data-dir = "x"
        alone = true
        capabilities = ["gpu", "fifo"]
        [shards]
        tables = 1
        queues = 1
        queues-require = ["fifo"]
    "#;
    let config: ServerConfig = toml::from_str(text).unwrap();
    config.validate().unwrap();
    assert!(config.host().capabilities.contains("gpu"));
    let plain = ServerConfig {
        shards: ShardCounts { queues_require: Vec::new(), ..config.shards.clone() },
        ..config.clone()
    };
    let [table, queue] = &config.group_specs()[..] else { panic!("two shards") };
    assert!(table.membership.requirement.is_empty());
    assert_eq!(queue.membership.requirement, Requirement::hard(["fifo"]).unwrap());
    // Nodes with other settings still hold the same group.
    assert!(queue.membership.may_be(plain.group_specs()[1].membership.genesis));
}

#[test]
fn names_of_capabilities_are_checked_wherever_they_stand() {
    type Spoil = fn(&mut ServerConfig, Vec<String>);
    let places: [(&str, Spoil); 3] = [
        ("`capabilities`", |config, names| config.capabilities = names),
        ("`tables-require`", |config, names| config.shards.tables_require = names),
        ("`queues-require`", |config, names| config.shards.queues_require = names),
    ];
    for (key, spoil) in places {
        let mut config = example();
        spoil(&mut config, vec!["fifo".to_owned(), "Fi fo".to_owned()]);
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.starts_with(key), "{refused}");
        assert!(refused.contains("\"Fi fo\"") && refused.contains("a-z"), "{refused}");
    }
}

#[test]
fn a_misspelt_key_is_refused_with_its_line() {
    let text = "node = 1\ndata-dir = \"x\"\nlisten = \"127.0.0.1:1\"\nlissten = 3\n";
    let error = toml::from_str::<ServerConfig>(text).unwrap_err().to_string();
    assert!(error.contains("lissten") && error.contains("line 4"), "{error}");
}
