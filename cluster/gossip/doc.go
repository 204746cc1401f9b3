// Package gossip tells which servers of a cluster are alive, where they are and a
// little about each (Meta), with hashicorp/memberlist. It decides nothing: it suggests
// addresses, and Raft's configuration says who belongs.
//
// A server is a member under its id. It is alive until memberlist has found it silent
// for some five seconds, or until it says that it leaves. One that is not alive stays
// listed, with its last Meta, until it has been forgotten for a day or 64 later ones
// have pushed it out.
//
// memberlist never looks again for a server that it has given up, so two halves of a
// cluster that were cut off from each other for longer than half a minute would stay
// apart for good. Run joins again every few seconds whatever address is known and not
// alive: those of lost members, the seeds, those that Options.Rejoin names, and those
// of the peers file, which outlives the process.
//
// What keeps strangers out: every packet carries the cluster's name as its label, and
// with a key everything is encrypted and authenticated. Without a key anybody who
// reaches the port can say anything about any server, but not have memory set aside
// for it: what comes is checked before memberlist reads it, at most 256 KiB of each of
// 32 connections. With one, whoever has it is trusted fully, in what gossip is trusted
// with: to take part in the cluster is another matter. Keys are changed while servers run
// (SetKeys): every server receives with the new one before any sends with it.
//
// An address that changes: other servers refuse a known id at a new address while
// they believe it alive at the old one, and for two seconds after that. After a Leave
// they take it at once. When an id answers at two addresses at a time, two processes
// have the same id: Problem says so.
//
// Goroutines: those of memberlist, which Close ends but does not wait for, as
// memberlist does not; two that hand accepted connections and packets to memberlist,
// which Close ends and waits for; and those of Run, which waits for them: one that
// looks every interval, one for each address being joined, four at a time, and one
// that checks ids at two addresses. Leave has one for each server it tells, and waits
// for them.
//
// Numbers of the form R9 in comments name reliability rules of the project, which the
// sentence beside each explains.
package gossip
