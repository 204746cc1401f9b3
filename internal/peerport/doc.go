// Package peerport lets the protocols that servers speak with each other share one
// TCP port: Raft, the copying of blobs, and calls.
//
// The one who dials says in one line, the preface, which protocol it wants, for which
// cluster, who it is and whom it means to reach; the port answers with one line and
// hands the connection to the listener of that protocol:
//
//	eboot-raft/1 cluster=prod from=3f0c… to=9a41…
//	ok
//
// or refuses with the reason, which Dial returns as an error:
//
//	conflict this server belongs to cluster "test", not to "prod"
//
// Values are query-escaped, keys that are not known are ignored, and "to" may be left
// out by one who knows only an address. Nothing may be sent before the answer. Naming
// the receiver matters: addresses change hands, and a vote or a blob meant for one
// server must not be taken by another that has its address now.
//
// The preface proves nothing. With Credentials everything is inside TLS 1.3, and each
// side accepts a server of its own cluster only, whose certificate says so; a connection
// without TLS is refused, and without Credentials one with it. Without them the network
// decides who may connect at all.
//
// A certificate does not hold an id: any server of the cluster may say that it is any
// other.
//
// A listener answers "ok" when its Accept takes the connection, so a connection that
// was made is one that somebody serves. Connections still belong to the Port after
// that: whatever is open when Serve ends is closed then, since hashicorp/raft closes
// none that it accepted.
//
// Goroutines: Serve's own accepts; one per connection sees to TLS and reads the preface,
// for Options.Preface at most, and ends when the connection was handed over. Serve waits
// for them.
package peerport
