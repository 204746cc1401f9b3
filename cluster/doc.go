// Package cluster gets bytes agreed on by the servers of a cluster, with
// hashicorp/raft, and hands the agreed bytes to a StateMachine in one order on every
// server. It does not know what they mean.
//
// A command is proposed with Apply on the leader; it is done when a majority has it
// on disk and the StateMachine of this server has applied it. The applied index is
// the last log entry that the StateMachine has really taken (Applied, WaitApplied),
// not the one that Raft has sent to it. VerifiedRead makes a read linearizable.
//
// # Who belongs to the cluster
//
// The configuration of Raft says so: voters, and non-voters who get the log and have no
// say. A Directory tells who else is alive and at which address, and asks servers what they know
// (Knowledge). It only suggests; what is in the log counts. Without a
// Directory a server is alone.
//
//   - Form: N fresh servers found a cluster when all agree on the list of founders,
//     and each promises the list on its disk, once in its life, before anybody
//     bootstraps it; so two clusters that are founded never share a server. The type
//     founding has the details. Found makes a cluster of one because an operator says so.
//   - The steward, a goroutine of the leader, adds servers that are alive and know no
//     other cluster as non-voters, makes them voters when they have been
//     stable, are caught up and hold the bundles, and corrects addresses. One change at a
//     time, each of the newest configuration, confirmed by a majority before it is
//     proposed. It removes nobody: Remove and Replace do, and keep a majority alive.
//   - A server that others know as a voter and whose log is empty has lost it. Its vote
//     might be given twice, so it is never let in: the gate before the StreamLayer
//     takes no connection before this server may take part (Options.Admit). Standing says what
//     is wrong with a server, Waiting what keeps servers out.
//   - Servers vote by id and are found by id: by gossip, else by the address in
//     the configuration. All addresses may change at once, or be swapped; an address names
//     its server (host:port#ID), so that no message or vote reaches another one.
//   - Inspect and Recover work on the directory of a stopped server, for when a majority is
//     lost for good.
//
// # Failures
//
// Serving slaves must never hang on Raft, and a failure of Raft must not end the
// process, so everything here that fails stops Raft on this server and says why
// (Failure), and nothing panics:
//
//   - The StateMachine panics on an entry, above all on one that this version cannot
//     read: that entry and all later ones are not applied, no snapshot is taken, and
//     Raft is shut down. The state from before the entry can still be read.
//   - The disk fails: the first error of the log store, other than a full disk, ends
//     its use for good, because what a file holds after a failed fsync is not known.
//     OnStorageFailure is told; a restart is the way on.
//   - The disk is full: writes fail, and Raft waits to save its term until there is
//     space again.
//
// A server alone, without a StreamLayer, is a cluster of one: it elects itself at
// once and nobody can reach it. Nothing else differs from a larger cluster.
//
// Goroutines: those of Raft, all waited for by Close; one that watches leadership
// and failures; the steward, while this server leads; one that follows the Directory and one that
// asks the others while no leader is known; one per question to another server; one per wait for a future of Raft, which ends with
// the future; one for bbolt's metrics. The StateMachine is called by one goroutine of Raft at a time.
// Only a wait for a future that Raft forgets when it ends may outlive Close.
//
// The directory holds raft.db (log, term and vote, and the promise to found a
// cluster, in bbolt) and snapshots/ (the newest three). Numbers of the form R16 in comments name
// reliability rules of the project, which the sentence beside each explains.
package cluster
