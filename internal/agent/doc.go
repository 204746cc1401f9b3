// Package agent is the composition root: it builds, starts and stops one
// server, and is the only place where the sibling packages meet.
//
// An Agent owns a data directory, a Raft group of one, a blob store, the
// sockets that slaves talk to and the admin API. Its files follow its jobs:
// agent.go starts and stops, state.go follows the replicated state and keeps the
// serving cache, trees.go holds the trees that slaves see and knows which are
// complete, boot.go decides about discovery and connections, listeners.go opens
// one TCP port per ERTS version, and the rest answers the admin API.
//
// # Order
//
// Start: data directory, blob store, replicated state, Raft, API, TCP, and UDP
// last: a slave remembers for ever a server that answered discovery and refused
// TCP. Stop in reverse: silence on UDP first, then connections after a second of
// quiet, then the API, then Raft.
//
// # Goroutines
//
// Run owns every goroutine of the server and returns when all have ended: one
// that follows the state, one per socket and connection, the scrubber, the
// fleet's, the serving cache's writer and the sweeper of idle publishes.
//
// Serving never waits for Raft: slaves are answered from an immutable state, at
// first the one that the serving cache kept on disk.
package agent
