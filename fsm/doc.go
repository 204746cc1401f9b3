// Package fsm is the replicated state of a cluster: the whitelist, the bundle
// index with who holds what, the channels and their rollouts, the cluster's identity and
// version, which servers are drained and which were removed, the latest changes as events,
// the API tokens, and the answers to recent requests.
//
// State is one version of it, immutable: every read is without a lock, and a
// snapshot is the pointer. Machine holds the newest State behind an atomic pointer
// and makes the next one from each command of the Raft log, in the order of the log.
//
// Apply is a function of the state and the command alone: no clock, no
// randomness, no I/O, no order of a Go map. The proposer puts the time (Header.At)
// and all ids into the command. Tests read this package's source to keep it so.
//
// A command travels in an envelope: a type byte, a version byte, a JSON body. An
// entry that this server cannot read, because its type or version is unknown or its
// body has another shape, makes Apply panic with a *HaltError: to skip it would make
// this server's state another one than its peers', for ever and unseen. The caller of
// Apply is to catch the panic, to apply nothing further and to leave the group; the
// State stays readable, so slaves are served on. See package cluster.
//
// The rules of a command version are frozen with its first release: what Apply
// accepts and which error code it answers is part of the replicated state. A looser
// or a stricter rule is a new version, proposed only once every server knows it. The
// texts of errors may be reworded: Digest leaves them out.
//
// What every server knows is a number in the state, the cluster version. Each
// program knows versions up to Version, each command needs one (MinimumVersion), and
// the leader raises State.Version (RaiseVersion) when all servers, those without a
// vote too, run programs that know it. It is never lowered. A proposer compares the
// two first: an entry that some server cannot read would halt that server.
//
// What a slave boots is Target: what its channel points to or, while a rollout is under
// way, the target of that for the slaves of the stages that were begun. How a rollout goes
// on is package rollout's; here it gets its commands, moves its channel, and keeps
// everything else from moving it meanwhile.
//
// The package starts no goroutine. Machine.Apply and Machine.Restore are called by
// one goroutine at a time; everything else may be called by many.
package fsm
