//! Commands about what is on its way between nodes.

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::{Membership, ReplicaId};
use shardhost_proto::peer::MessageKind;

use crate::commands::arguments::Arguments;
use crate::commands::forge;
use crate::words;
use crate::world::network::{Fate, Link, Pattern};
use crate::world::{Cluster, Done};

impl Cluster {
    /// Messages arrive; or they are lost, or come twice, or in the wrong order.
    pub fn deliver(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let pattern = arguments.pattern()?;
        let count = arguments.maybe("count")?.unwrap_or(usize::MAX);
        let mut taken = self.network.take(&pattern, count);
        if taken.is_empty() {
            return Err("there is nothing to deliver".to_owned());
        }
        if arguments.flag("reverse")? {
            taken.reverse();
        }
        if arguments.flag("keep")? {
            taken.iter().for_each(|(link, message)| self.network.hold(*link, message.clone()));
        }
        if arguments.flag("duplicate")? {
            taken.extend(taken.clone());
        }
        if arguments.flag("drop")? {
            for ((from, to), message) in taken {
                self.say(format!("lost {}", words::message(from, to, &message)));
            }
            return Ok(());
        }
        // What goes over one link arrives as one frame.
        let mut frames: Vec<(Link, Vec<_>)> = Vec::new();
        for (link, message) in taken {
            match frames.last_mut().filter(|(of, _)| *of == link) {
                Some((_, frame)) => frame.push(message),
                None => frames.push((link, vec![message])),
            }
        }
        frames.into_iter().try_for_each(|((from, to), frame)| self.arrive(from, to, frame))
    }

    pub fn hold(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let pattern = arguments.pattern()?;
        for (link, message) in self.network.take(&pattern, usize::MAX) {
            self.network.hold(link, message);
        }
        self.network.rule(pattern, Fate::Held);
        Ok(())
    }

    pub fn release(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (pattern, drop) = (arguments.pattern()?, arguments.flag("drop")?);
        self.network.lift(Fate::Held);
        for (link, message) in self.network.release(&pattern) {
            if !drop {
                self.network.push(link, message);
            }
        }
        Ok(())
    }

    pub fn lose(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let pattern = arguments.pattern()?;
        self.network.lose(pattern);
        Ok(())
    }

    pub fn partition(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let side = arguments.nodes("node")?;
        let (here, there): (Vec<_>, Vec<_>) =
            self.node_ids().into_iter().partition(|id| side.contains(id));
        for (here, there) in here.iter().flat_map(|one| there.iter().map(|two| (*one, *two))) {
            self.network.lose(Pattern::link(here, there));
            self.network.lose(Pattern::link(there, here));
        }
        Ok(())
    }

    pub fn heal(&mut self) -> Done {
        self.network.lift(Fate::Lost);
        Ok(())
    }

    pub fn ship_snapshots(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (pattern, fails) = (arguments.pattern()?, arguments.flag("fail")?);
        let shipments = self.shipments(&pattern);
        if shipments.is_empty() {
            return Err("no snapshot is on its way".to_owned());
        }
        shipments.into_iter().try_for_each(|shipping| self.ship(shipping, fails))
    }

    /// A forged message arrives.
    pub fn forge(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (from, to) = (arguments.node("from")?, arguments.node("to")?);
        let group = arguments.group()?;
        let status = self.node(to)?.status(group);
        let replica_on = |node| {
            let replica = status.and_then(|status| status.membership.replica_on(node));
            replica.map_or(node.get(), ReplicaId::get)
        };
        let mut message = forge::message(arguments)?;
        message.group = group.get();
        message.from_replica = arguments.maybe("from-replica")?.unwrap_or(replica_on(from));
        message.to_replica = arguments.maybe("to-replica")?.unwrap_or(replica_on(to));
        if matches!(message.kind(), MessageKind::CreateReplica | MessageKind::Removed) {
            let known = status.map(|status| Membership::clone(&status.membership));
            message.create_request = Some(forge::create_request(arguments, known)?);
        }
        if let (Some(meta), Some(status)) = (message.snapshot.as_mut(), status) {
            meta.membership = Some(membership_to_message(&status.membership));
        }
        self.arrive(from, to, vec![message])
    }
}
