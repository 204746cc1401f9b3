// Package bootproto is the wire of EBOOT, the protocol by which a stock Erlang
// node (erl -loader inet) finds a boot server and reads its code from it.
//
// # Nouns
//
// Discovery is UDP, port 4368. A slave sends a query with the version of its
// runtime system (ERTS) to every host it was given; a search is all the queries
// of one look for a server, recognised by source address and port. A server that
// would boot the slave replies with a priority byte and a TCP port. Pace is the
// function that makes the order of several servers real to a client that ignores
// priorities.
//
// The file protocol is TCP: frames of a 4-byte length and one external term
// (package etf), a request and its reply at a time. A Host says who may connect
// and gives a Session, which answers for the files. The package knows no disk and
// no policy: an Answerer and a Host are all it asks.
//
// What an error means to a slave decides how it is told. A POSIX error is final:
// the slave believes that there is no such file. Everything else closes the
// connection, and the slave looks for another server and asks again. It does so only
// if it waits for a reply just then: a connection that ends while it is idle costs its
// slave a minute, and so a Holder may keep it open when this process ends (drain.go).
//
// A slave may run a loader of our own instead of the stock one, which came with its boot
// script. It speaks an extension of the file protocol (extension.go), to which a Session
// agrees by being Extended: it opens a session for the bundle that it began with, fetches
// many files at once, reports how its boot goes, and takes notice of every end of its
// connection. From the request for a session on it is told by empty frames that its server
// lives, and while it keeps its connection open it can be told to boot again (restart.go).
//
// # Goroutines
//
// Discovery.Serve runs three for each socket: one receives and answers, one sends
// what was delayed, one waits for the end. FileServer.Serve runs one that accepts,
// one that waits for the end, one that sends keep-alives to slaves with our loader, tells them to
// restart and sleeps while there are none, and one for each connection, which reads a request, asks the
// Session and writes the reply. Recheck, Drain and the end of Serve reach a connection from
// outside by its deadline or by closing it; a keep-alive, by its turn to write, which is
// held for whole frames, and which the keep-alive does not wait for. Serve returns when all
// of its goroutines have ended.
//
// # Costs
//
// A request for a missing file or for content in memory costs one read, one
// write and no allocation; the reading goroutine parks on the runtime's poller
// between them. An idle connection holds a goroutine and 1 KiB of buffer. Large
// content is sent by sendfile(2). Of the files of one request many go with one write, from
// where they are in memory; those of a plan that many slaves get are encoded once, and sent by
// sendfile(2), too (Frames).
//
// # Strangers and floods
//
// Who is not let in costs little, and in this order: the kernel drops datagrams that are no
// request (filter.go); the limit of a source is asked before the Answerer; a Host's Admit is
// asked before a connection has a place; and what does nothing with its place loses it to an
// address that has fewer (places.go). Discovery is silent exactly when a connection
// would be refused. What is logged of all that is bounded, and what slaves may have chosen of it
// is one quoted line: refusals at any level, 40 lines a minute; single connections and requests at level
// debug only, 1,000 lines at once and 10 a second.
//
// # Caveats
//
// IPv4 only, as the client is. Linux only: it relies on IP_PKTINFO. There is no
// encryption and no proof of who asks: addresses are all there is.
package bootproto
