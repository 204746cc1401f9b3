// Package cluster gets bytes agreed on by the servers of a cluster, with
// hashicorp/raft, and hands the agreed bytes to a StateMachine in one order on every
// server. It does not know what they mean.
//
// A command is proposed with Apply on the leader; it is done when a majority has it
// on disk and the StateMachine of this server has applied it. The applied index is
// the last log entry that the StateMachine has really taken (Applied, WaitApplied),
// not the one that Raft has sent to it. VerifiedRead makes a read linearizable.
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
// and failures; one per wait for a future of Raft, which ends with the future; one
// for bbolt's metrics. The StateMachine is called by one goroutine of Raft at a time.
//
// The directory holds raft.db (log, term and vote, in bbolt) and snapshots/ (the
// newest three). Numbers of the form R16 in comments name reliability rules of the
// project, which the sentence beside each explains.
package cluster
