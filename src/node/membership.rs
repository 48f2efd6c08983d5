//! Membership changes and leader transfer. Asked of any node, carried out by the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Precondition};

use super::wire::{Admin, AdminReply, WireError};
use super::{AGAIN, Leadership, MemberStatus, Node};
use crate::error::Error;
use crate::failpoint::failpoint;
use crate::limits::NODE_IDS;
use crate::proto::v1::Consistency;
use crate::raft::codec;
use crate::raft::network::{Method, PeerError};
use crate::raft::types::{Member, NodeId, Types};
use crate::runtime::{self, Instant};
use crate::state::{Command, Op};

/// How often the leader looks for members that have not been noted and for changes that are
/// unfinished, and how long either may take.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
const NOTE_TIMEOUT: Duration = Duration::from_secs(5);
/// A learner may be promoted when it lacks at most this many entries.
const CAUGHT_UP: u64 = 1_000;

impl Node {
    /// The members as this node knows them; pair with a barrier for the committed ones.
    pub fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let leader = metrics.current_leader;
        let members = membership.nodes().map(|(id, member)| MemberStatus {
            id: *id,
            peer_address: member.peer_address.clone(),
            client_address: self
                .client_address(*id)
                .unwrap_or_else(|| member.client_address.clone()),
            learner: !voters.contains(id),
            leader: leader == Some(*id),
        });
        members.collect()
    }

    pub async fn add_learner(
        &self,
        id: NodeId,
        member: Member,
        timeout: Duration,
    ) -> Result<Vec<MemberStatus>, Error> {
        self.administer(Admin::AddLearner { id, member }, timeout).await?;
        Ok(self.members())
    }

    pub async fn promote(&self, id: NodeId, timeout: Duration) -> Result<Vec<MemberStatus>, Error> {
        self.administer(Admin::Promote { id }, timeout).await?;
        Ok(self.members())
    }

    pub async fn remove(&self, id: NodeId, timeout: Duration) -> Result<Vec<MemberStatus>, Error> {
        self.administer(Admin::Remove { id }, timeout).await?;
        Ok(self.members())
    }

    /// Makes another voter lead; answers which. None = the one whose log is longest.
    pub async fn transfer_leader(
        &self,
        to: Option<NodeId>,
        timeout: Duration,
    ) -> Result<NodeId, Error> {
        match self.administer(Admin::TransferLeader { to }, timeout).await? {
            AdminReply::Leader(leader) => Ok(leader),
            AdminReply::Done | AdminReply::Description(_) => {
                Err(Error::internal("unexpected answer to a leader transfer"))
            }
        }
    }

    /// Carries out a change here or at the leader.
    async fn administer(&self, admin: Admin, timeout: Duration) -> Result<AdminReply, Error> {
        let deadline = Instant::now() + timeout;
        let mut again = false;
        // An attempt may have taken its first step, or all of them.
        let mut begun = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = match self.leadership() {
                Leadership::Leader { .. } => {
                    match runtime::timeout(left, self.administer_here(admin.clone())).await {
                        Ok(result) => result,
                        Err(_) => return Err(Error::Timeout { definite: false }),
                    }
                }
                Leadership::Follower { leader, address, .. } => {
                    let payload = codec::to_bytes(&admin);
                    let call = self.peers().call(leader, &address, Method::Admin, payload, left);
                    match runtime::timeout(left, call).await {
                        Ok(Ok(answer)) => {
                            let reply: Result<Result<AdminReply, WireError>, _> =
                                codec::from_bytes("administration", &answer);
                            reply.map_err(Error::internal)?.map_err(Error::from)
                        }
                        Ok(Err(error)) => Err(Error::Connection {
                            message: error.to_string(),
                            definite: matches!(error, PeerError::Unreachable(_)),
                        }),
                        Err(_) => return Err(Error::Timeout { definite: false }),
                    }
                }
                Leadership::Unknown => Err(self.no_leader()),
            };
            // A change is two entries, and openraft says the same when it lost its office between them. What this node
            // knows of members may be a change that never came about, until it has heard of the leader's log.
            let refused = matches!(result, Err(Error::Membership { .. }));
            if refused && again && self.applied().await.is_ok() && self.has_promoted(&admin) {
                return Ok(AdminReply::Done);
            }
            match result {
                // Wait for the next leader. Any change may be asked for again, and what is in its way may be
                // its own first step, which that leader completes.
                Err(error)
                    if Instant::now() < deadline
                        && (matches!(error, Error::NoLeader { .. })
                            || begun && matches!(error, Error::Membership { .. })) =>
                {
                    again = true;
                    begun |= !error.definite();
                    runtime::sleep(AGAIN).await;
                }
                Err(error) if begun && error.definite() => {
                    tracing::info!(%error, "a change of members that was begun is not known to be done");
                    return Err(Error::Timeout { definite: false });
                }
                result => return result,
            }
        }
    }

    fn has_promoted(&self, admin: &Admin) -> bool {
        let Admin::Promote { id } = admin else { return false };
        self.members().iter().any(|member| member.id == *id && !member.learner)
    }

    /// Carries out a change as the leader.
    pub(super) async fn administer_here(&self, admin: Admin) -> Result<AdminReply, Error> {
        match admin {
            Admin::Describe => Ok(AdminReply::Description(self.describe())),
            Admin::AddLearner { id, member } => self.add_here(id, member).await,
            Admin::Promote { id } => {
                let _alone = self.0.administration.lock().await;
                self.applied().await?;
                self.refuse_retired(id)?;
                match self.members().iter().find(|member| member.id == id) {
                    None => {
                        let why = format!("node {id} is not a member; add it as a learner first");
                        return Err(Error::Membership { why });
                    }
                    Some(member) if !member.learner => {
                        let why = format!("node {id} is a voter already");
                        return Err(Error::Membership { why });
                    }
                    Some(_) => {}
                }
                let lag = self.lag(id);
                if lag.is_none_or(|lag| lag > CAUGHT_UP) {
                    let behind =
                        lag.map_or("everything".to_owned(), |lag| format!("{lag} entries"));
                    let why = format!("node {id} has not caught up: it lacks {behind}");
                    return Err(Error::Membership { why });
                }
                let mut voters = self.voters();
                voters.insert(id);
                self.refuse_without_majority(&voters).await?;
                let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                let write = self.raft().change_membership(change, true).await;
                write.map_err(|error| self.refused(error))?;
                Ok(AdminReply::Done)
            }
            Admin::Remove { id } => self.remove_here(id).await,
            Admin::TransferLeader { to } => {
                let members = self.members();
                if let Some(to) = to
                    && !members.iter().any(|member| member.id == to && !member.learner)
                {
                    return Err(Error::Membership { why: format!("node {to} is not a voter") });
                }
                let Some(to) = to.or_else(|| self.successor()) else {
                    return Err(Error::Membership { why: "there is no other voter".to_owned() });
                };
                if to == self.id() {
                    return Ok(AdminReply::Leader(to));
                }
                self.transfer(to, Duration::from_secs(5)).await?;
                Ok(AdminReply::Leader(to))
            }
        }
    }

    /// The record comes first: from then on the number is this node's or nobody's, whatever becomes of
    /// the change itself. Repeated, it finds its own record and goes on.
    async fn add_here(&self, id: NodeId, member: Member) -> Result<AdminReply, Error> {
        if !NODE_IDS.contains(&id) {
            return Err(Error::invalid("id", id.to_string(), format!("{NODE_IDS:?}")));
        }
        let _alone = self.0.administration.lock().await;
        let leader = self.raft().as_leader().map_err(|_| self.no_leader())?;
        self.applied().await?;
        self.refuse_retired(id)?;
        if self.member(id).is_some() {
            return Err(Error::Membership { why: format!("node {id} is a member already") });
        }
        let noted = self.read(|state| state.member(id).is_some());
        if !noted && self.peers().known_store(id).is_some() {
            // It was one before members were noted.
            return Err(retired(id));
        }
        let store = match self.peers().store_of(id, &member.peer_address).await {
            Ok(store) => store.map(|store| store.0),
            // It may be started later: then it is noted when it is met.
            Err(PeerError::Unreachable(_) | PeerError::NoAnswer(_)) => None,
            Err(PeerError::Refused(why)) => {
                return Err(Error::Membership { why: format!("{}: {why}", member.peer_address) });
            }
        };
        self.note(Op::AdmitMember { node: id, store }).await?;
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, member)]));
        // Not under a later leadership, under which the node may have been removed by now.
        let same = Precondition::CommittedLeaderId {
            committed_leader_id: leader.to_committed_leader_id(),
        };
        let write = self.raft().change_membership_if(change, true, [same]).await;
        write.map_err(|error| self.refused(error))?;
        Ok(AdminReply::Done)
    }

    /// The record comes first: once a removal is acknowledged, and also when it broke off after its
    /// first step, no node can take the number. Repeated, it does what is left to do.
    async fn remove_here(&self, id: NodeId) -> Result<AdminReply, Error> {
        let _alone = self.0.administration.lock().await;
        self.applied().await?;
        let members = self.members();
        let member = members.iter().find(|member| member.id == id);
        match member {
            None if self.read(|state| state.member(id).is_none()) => {
                return Err(Error::NotFound { kind: "member".into(), name: id.to_string() });
            }
            None => {}
            Some(member) => {
                if !member.learner {
                    let mut voters = self.voters();
                    voters.remove(&id);
                    if voters.is_empty() {
                        let why = format!("node {id} is the last voter");
                        return Err(Error::Membership { why });
                    }
                    self.refuse_without_majority(&voters).await?;
                }
                if id == self.id() {
                    // Another node finishes the change: a leader that removes itself would leave
                    // the cluster without one until an election.
                    self.hand_over(Duration::from_secs(2)).await;
                    return Err(Error::NoLeader { leader: None, definite: true });
                }
            }
        }
        self.note(Op::RetireMember { node: id }).await?;
        failpoint!(await MembershipHalf, |error: std::io::Error| Err(Error::internal(error)));
        // Again: an addition that was under way may have taken place meanwhile.
        let Some(member) = self.member(id) else { return Ok(AdminReply::Done) };
        let ids = BTreeSet::from([id]);
        let change = match member.learner {
            true => ChangeMembers::RemoveNodes(ids),
            false => ChangeMembers::RemoveVoters(ids),
        };
        let write = self.raft().change_membership(change, false).await;
        write.map_err(|error| self.refused(error))?;
        Ok(AdminReply::Done)
    }

    fn member(&self, id: NodeId) -> Option<MemberStatus> {
        self.members().into_iter().find(|member| member.id == id)
    }

    /// Waits until the state holds what was committed before this leadership.
    async fn applied(&self) -> Result<(), Error> {
        self.barrier(Consistency::Linearizable, NOTE_TIMEOUT).await.map(drop)
    }

    fn refuse_retired(&self, id: NodeId) -> Result<(), Error> {
        let removed = self.read(|state| state.member(id).is_some_and(|member| member.removed));
        if removed { Err(retired(id)) } else { Ok(()) }
    }

    async fn note(&self, op: Op) -> Result<(), Error> {
        let outcome = self.propose_here(&Command { request: None, op }, NOTE_TIMEOUT).await?;
        outcome.result.map(drop).map_err(Error::from)
    }

    /// As the leader, notes the data directories of members which the state does not know yet: those
    /// of the beginning, and those that were added before they were started. A node that joins later
    /// then knows them before it has met them. Also finishes what an earlier leader has begun.
    pub(super) async fn run_notes(self) {
        loop {
            runtime::sleep(NOTE_INTERVAL).await;
            let Leadership::Leader { .. } = self.leadership() else { continue };
            self.finish_change().await;
            for member in self.members() {
                let Some(store) = self.peers().known_store(member.id) else { continue };
                let missing = self.read(|state| match state.member(member.id) {
                    Some(noted) => !noted.removed && noted.store.is_none(),
                    None => true,
                });
                if !missing {
                    continue;
                }
                let op = Op::AdmitMember { node: member.id, store: Some(store.0) };
                match self.note(op).await {
                    Ok(()) => tracing::info!(node = member.id, "member noted"),
                    // The next round tries again.
                    Err(error) => tracing::debug!(%error, node = member.id, "member not noted"),
                }
            }
        }
    }

    /// Takes the second step of a change of voters whose leader took only the first: it ended between
    /// them, or its caller gave up. Until then both memberships are in force, and a majority of each is
    /// needed.
    async fn finish_change(&self) {
        // Held, a change is under way here.
        let Ok(_alone) = self.0.administration.try_lock() else { return };
        if !self.is_joint() {
            return;
        }
        // Removed voters go, as `Admin::Remove` wants it; nothing else removes any.
        let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
        let change = self.raft().change_membership(nothing, false);
        match runtime::timeout(NOTE_TIMEOUT, change).await {
            Ok(Ok(_)) => tracing::info!("an unfinished change of members is finished"),
            // The next round tries again.
            Ok(Err(error)) => tracing::info!(%error, "a change of members is unfinished"),
            Err(_) => tracing::info!("a change of members is unfinished: no majority"),
        }
    }

    /// Whether two memberships are in force.
    fn is_joint(&self) -> bool {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().len() > 1
    }

    /// Refuses a change after which no majority of the voters would be there: nothing could be decided any more, not even
    /// this change.
    async fn refuse_without_majority(&self, voters: &BTreeSet<NodeId>) -> Result<(), Error> {
        let leader = self.raft().as_leader().map_err(|_| self.no_leader())?;
        let leader = leader.to_committed_leader_id();
        let members = self.members().into_iter();
        let others = members.filter(|m| voters.contains(&m.id) && m.id != self.id());
        let others = others.map(|member| (member.id, member.peer_address));
        let mut answers = self.confirmations(&leader, others);
        let mut there = BTreeSet::from_iter(voters.get(&self.id()).copied());
        while there.len() * 2 <= voters.len()
            && let Some(answer) = answers.next().await
        {
            there.extend(answer.and_then(|(id, follows)| follows.then_some(id)));
        }
        if there.len() * 2 > voters.len() {
            return Ok(());
        }
        let why = format!(
            "of the voters {voters:?} that there would be only {there:?} answer, and nothing could be decided without a \
             majority: start others first, or remove one that is down"
        );
        Err(Error::Membership { why })
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        let members = self.members().into_iter();
        members.filter(|member| !member.learner).map(|member| member.id).collect()
    }

    /// How many entries a member lacks, as the leader knows it.
    fn lag(&self, id: NodeId) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication: &BTreeMap<NodeId, _> = metrics.replication.as_ref()?;
        let matched = replication.get(&id)?.as_ref()?.index;
        Some(last.saturating_sub(matched))
    }

    /// The other voter whose log is longest.
    fn successor(&self) -> Option<NodeId> {
        let voters = self.members().into_iter().filter(|m| !m.learner && m.id != self.id());
        voters.map(|m| m.id).min_by_key(|id| self.lag(*id).unwrap_or(u64::MAX))
    }

    /// Transfers leadership and waits until the other node leads.
    async fn transfer(&self, to: NodeId, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let mut asked: Option<Instant> = None;
        while self.leader_id() != Some(to) {
            if Instant::now() >= deadline {
                let why = format!("node {to} did not take over in {timeout:?}");
                return Err(Error::Membership { why });
            }
            // Asked again after a while: the first message may be lost.
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(1))
                && matches!(self.leadership(), Leadership::Leader { .. })
            {
                asked = Some(Instant::now());
                self.raft().trigger().transfer_leader(to).await.map_err(Error::internal)?;
            }
            runtime::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Lets another node lead, if this one does and there is another.
    pub(super) async fn hand_over(&self, timeout: Duration) {
        if !matches!(self.leadership(), Leadership::Leader { .. }) {
            return;
        }
        let Some(to) = self.successor() else { return };
        if let Err(error) = self.transfer(to, timeout).await {
            tracing::warn!(%error, "leadership was not handed over");
        }
    }

    /// Lets the one of these voters lead whose log is longest; says which.
    pub(super) async fn hand_over_to(&self, voters: &BTreeSet<NodeId>) -> Result<NodeId, Error> {
        let next = voters.iter().min_by_key(|id| self.lag(**id).unwrap_or(u64::MAX));
        let Some(to) = next else {
            return Err(Error::Membership { why: "there is no other voter".to_owned() });
        };
        self.transfer(*to, Duration::from_secs(5)).await?;
        Ok(*to)
    }

    fn refused(&self, error: RaftError<Types, ClientWriteError<Types>>) -> Error {
        match error {
            RaftError::Fatal(fatal) => Error::internal(fatal),
            // Its first step may have been taken, and the next leader takes the second.
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) if self.is_joint() => {
                Error::NoLeader { leader: None, definite: false }
            }
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => self.no_leader(),
            RaftError::APIError(
                ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::PreconditionFailed(_),
            ) => Error::LeaderChanged,
            RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_)) => {
                Error::Membership { why: error.to_string() }
            }
        }
    }
}

/// In the words of the state, which has the last one.
fn retired(id: NodeId) -> Error {
    let allowed = format!("a number that no member ever had; node {id} was removed");
    Error::invalid("id", id.to_string(), allowed)
}
