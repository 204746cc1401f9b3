// Package agent is the composition root: it builds, starts and stops one
// server, and is the only place where the sibling packages meet.
//
// An Agent owns a data directory, its part of a Raft group, a blob store, the
// sockets that slaves talk to and the admin API. Its files follow its jobs:
// agent.go starts and stops, state.go follows the replicated state and keeps the
// serving cache, trees.go holds the trees that slaves see and knows which are
// complete, served.go what is made of a tree for slaves with our loader, boot.go decides about
// discovery and connections, session.go about the sessions of our loader, rank.go about this
// server's place in a slave's order, listeners.go opens one TCP port per ERTS
// version.
//
// Of the other servers: group.go binds the peer port and gossip, peers.go knows who
// they are and how they are reached, forward.go brings writes to the leader and reads
// up to date, copies.go keeps every bundle whole on this disk, spread.go has a bundle
// copied before it is visible, exchange.go tells others what slaves have begun to boot and what boots need,
// members.go lists and changes who belongs to the group, offline.go works on the disk
// of a stopped server. The rest answers the admin API.
//
// # Order
//
// Start: data directory, blob store, replicated state, Raft, API, TCP, and UDP
// last: a slave remembers for ever a server that answered discovery and refused
// TCP. In a group, gossip and the peer port come before Raft, which they carry.
// Stop in reverse: silence on UDP first, then connections once they are quiet, then
// the API, then Raft.
//
// # Goroutines
//
// Run owns every goroutine of the server and returns when all have ended: one
// that follows the state, one that follows gossip, one that copies bundles, some per
// other server for pins and plans, one per socket and connection, the scrubber, the
// fleet's, the serving cache's writer and the sweeper of idle publishes.
//
// Serving never waits for Raft: slaves are answered from an immutable state, at
// first the one that the serving cache kept on disk.
package agent
