// Package testnet builds small networks of hosts on one Linux machine, breaks them and
// mends them again. Only tests import it.
//
// A Network is a switch and some hosts. Each Host is a network namespace of its own
// with one interface, eth0, and one IPv4 address; the switch is a bridge in one more namespace. No
// namespace has a name: descriptors of the test process and the programs inside hold them, and
// the kernel kills those programs when the test process ends. So a test that is killed leaves nothing behind, and two
// runs on one machine never meet, although every network has the same addresses.
//
// Faults are packets that a host does not take in: each host has an nft table of its
// own, on its input hook, and what is wrong with it is written there anew, in one transaction, by every
// change. Cut, CutOneWay and Isolate drop packets of named hosts, Lose drops a share of all, and
// Reject refuses TCP connections while UDP goes on. Heal takes all of that away. A packet that is
// dropped is not answered: the sender sees silence, as from a host whose cable was pulled
// somewhere behind the next switch. Connections that are open survive a cut that is healed in
// time, as they do in a real network.
//
// A Process is a program on a host, or on the machine's own network: it can be killed,
// stopped gracefully, paused, resumed and started again, and its output goes to a file that the
// test prints when it fails. Hosts share the file system of the machine: a Unix socket of a
// program on a host can be reached from outside.
//
// Real Erlang nodes join with testutil.SlaveOptions.Namespace = host.Namespace.
//
// It needs root and the programs ip and nft. A Network and its hosts may be used by one
// goroutine at a time, the methods of Process that end, pause or start it as well.
package testnet
