// Package peerrpc is what servers of one cluster ask each other, as HTTP and JSON
// over the peer port: what one knows of the cluster, entries for the leader's log,
// pins of slaves and plans of boots, copies of a bundle that is being published, and the
// tasks that only the leader can do.
//
// A server is addressed by its id: where it is found is known to the Dial function
// alone, and may change between two calls. Errors cross the wire as those of the admin
// API do, so errors.Is finds the same sentinel on both sides.
//
// The Server runs one goroutine per connection and per request, all of which end with
// Serve. The Client keeps idle connections, which Close lets go of.
package peerrpc
