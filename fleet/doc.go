// Package fleet remembers what one server observed of slaves: who asked, who
// was refused and why, what boots, how far it came, which bundle each boot is
// pinned to, and which files it asked for. A stock slave reports nothing, so what is
// known of it is read off the wire by those who serve it, and told to a Fleet.
//
// A sighting is what is known of one address. A boot is one boot of one slave: it
// begins when a boot script is sent, and belongs to the connection that asked for
// it, because many slaves may share one address. The slave's further
// connections, when it reconnects, cannot be told from another slave's at the
// same address; they count to the latest boot of their address and ERTS version.
// A boot is loading until a second passes without a request, then quiet; it is
// closed while no connection carries it. One that reconnects goes on
// where it was: loading, or quiet when it has been quiet before. A pin is the
// bundle that the latest boot of an address and ERTS version began with. Servers
// exchange their pins (MergePins), so that a slave which loses its server in the
// middle of a boot gets the same bundle from the next one; the later pin of a slave
// counts, and a boot here is always later than what was known of its slave.
//
// A slave with a loader of ours says more: which boot a connection belongs to, by a
// number (Opened), what its init has reached, and when the boot has ended (Reported).
// Such a boot is loading until then, and started after; a stock boot becomes one with its
// first session. A boot that nobody here knows was taken over from another server.
//
// A plan is what boots of one bundle, with one boot script and in one mode, asked for
// (Learn). The next such boot is sent it without asking. Servers exchange their plans
// (MergePlan): what one has learned comes before what others told it. A plan that is full
// takes nothing more.
//
// Everything is bounded, because strangers can cause it: addresses, finished
// boots, pins and plans are forgotten longest unused first, strangers before
// slaves. Nothing of it goes through Raft. Only pins and plans survive a restart: they are
// written to a file each, at most one boot later than a second.
//
// Goroutines: Run is the only one of the package. It finds boots that became
// quiet, and writes pins and plans; it sleeps when nothing loads and nothing changed.
// Each Connection is used by the goroutine that serves it. One lock guards the
// tables, another the pins, a third the plans; a request takes only the lock of its own
// connection, which nobody else wants but readers.
package fleet
