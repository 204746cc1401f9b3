// Package fleet remembers what was observed of slaves: who asked, who was refused and why,
// what boots, how far it came and how it failed, which bundle each boot is pinned to, and which
// files it asked for. A stock slave reports nothing, so what is known of it is read off the
// wire by those who serve it, and told to a Fleet. Servers tell each other of boots and events,
// so that each knows the fleet; sightings are of one server.
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
// first session.
//
// A boot has an ID, the same on every server, and one owner, the server that observed the slave
// last: Boot.Server. Only the owner changes it, and each change raises its revision
// (OnBoot, MergeBoots). A slave that comes here from another server is adopted with its boot: a
// session says which one by its number; of a stock slave it is the latest of the address, when that
// is of the pinned bundle. Adoption raises the revision by so much (takeOver) that what the former
// owner still has to say, such as that its connection ended, is no news. A boot that nobody here
// knows was taken over all the same; when the server that lost it tells of it later, the two
// are one. Clocks of servers may be some seconds apart; a slave that goes to and fro between
// servers within less may be shown with the wrong one for a while.
//
// A boot fails (Boot.Failure) when its slave closes its connection in mid-boot, or soon after its
// latest request although loaders keep connections for a minute, and is seen nowhere for 3 s; when
// it is booted again by then; and when a boot of a loader of ours asks for nothing for a minute. It
// is taken back when the slave goes on after all. Connections that a server closed are
// no failure, nor is a node that stops more than 10 min after its boot, nor one that said that it
// was told to restart. What cannot be seen: a stock slave that hangs in mid-boot
// looks like one that is up, and a host that loses its power keeps its connection. Whether
// a slave is healthy is for Judge, by the deadline and the time that a rollout sets. A boot keeps
// the id of the rollout that caused it (RolloutBoots), and when its latest connection ended.
//
// An event is what should not be overlooked: a slave that is refused, a failed boot, a slave that
// boots again and again. Servers exchange them (OnEvent, MergeEvents). Events are forgotten in the
// order in which they came, whatever their times, because clocks differ; a server remembers what it
// forgot, because others tell of it again. Refusals and restarts have their share of the places,
// and refusals here a pace, so that they wipe out nothing else.
//
// A plan is what boots of one bundle, with one boot script and in one mode, asked for
// (Learn). The next such boot is sent it without asking. Servers exchange their plans
// (MergePlan): what one has learned comes before what others told it. A plan that is full
// takes nothing more.
//
// Everything is bounded, because strangers can cause it: addresses, boots that no connection
// here carries, events, pins and plans are forgotten longest unused first, strangers before
// slaves, and the latest boot of a slave after the others. A boot of another server takes
// about 0.9 KB, its slave 0.4 KB. Nothing of it goes through Raft. Only pins and plans survive a
// restart: they are written to a file each, at most one boot later than a second.
//
// Goroutines: Run is the only one of the package. It finds boots that became
// quiet or failed, tells every 15 s of those that asked for more, and writes pins and plans; it
// sleeps when nothing loads and nothing changed.
// Each Connection is used by the goroutine that serves it. One lock guards the
// tables, also while OnBoot and OnEvent are called (of those that asked for more, 500 at a time), another the pins, a third the plans; a
// request takes only the lock of its own connection, which nobody else wants but readers.
package fleet
