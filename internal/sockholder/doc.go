// Package sockholder keeps the connections of slaves from ending when the server
// process does: kill -9, a crash, the end of a graceful stop.
//
// A stock slave does not take notice when its connection ends while no request of
// it is outstanding: it sends its next request to the dead port and waits 60 s
// for the reply (erl_prim_loader, loop/3 drops {tcp_closed,_}; see docs/PROTOCOL.md
// 5.1). When the connection ends while a request is outstanding, it looks for
// another server at once. So a connection must not end before its slave asks.
//
// # Nouns
//
// The holder is a process, the same program started again, that has duplicates of
// the sockets. The kernel sends no FIN as long as one duplicate is open. A Holder is
// its owner in the server: it starts the process, starts it again when it dies, and
// tells it what to hold. A slot is the place of one connection; its flag, in memory
// that both processes share, says whether a request is outstanding.
//
// # What the holder does
//
// While the server lives and has not released a socket, nothing. It watches a socket
// from the moment that the server released it or is gone: when the slave sends
// something or closes, the socket is closed, and what was sent is answered by a reset.
// Sockets whose flag says that a request is outstanding are closed as soon as the
// server is gone. What is left after a while is closed too (KeepFor), and when nothing
// is left and the server is gone, the process ends.
//
// The process is no child that a signal to the group of the server would reach: it has
// a session of its own, and ignores what asks a server to stop. It inherits nothing but
// its end of a socket pair and the flags, so that ports and locks of a server that died
// are free at once.
//
// # Goroutines
//
// Holder.Run owns two: one sends, one waits for the end of the holder process. Hold,
// Drop, Release and Busy never wait for the process: what there is to tell is queued, at
// most one entry for each slot. A holder that takes nothing for some seconds is killed.
// Serve, the holder process, has one.
//
// # Caveats
//
// A server whose socket has a duplicate must call shutdown(2) before it closes: close(2)
// alone ends nothing. A process that dies between reading a request and setting the flag,
// or between the end of a reply and clearing it, leaves a slave waiting for its 60 s.
// Where all processes die with the server, as in a container whose first process it is,
// nothing is held. Linux only.
package sockholder
