package fleet

import (
	"container/list"
	"maps"
	"slices"
	"strconv"
	"time"

	"eboot"
)

// boot is one boot of one slave. It is ours while known.Server is this server; only then has
// it carriers. Guarded by Fleet.mu.
type boot struct {
	known    eboot.Boot // Latest, Requests and Bytes without those of the carriers
	carriers map[*Connection]struct{}
	place    *list.Element // in Fleet.finished; nil while there are carriers
	origin   time.Time     // cured: when the slave's loader started, by the clock of this server
	// answeringAt is when checkLoading last found a request being answered.
	answeringAt time.Time
	goneAt      time.Time // when the slave left, while it is in Fleet.gone
	againAt     time.Time // when another boot began after that; zero: none
	keptAt      time.Time // when it was last kept although another server claimed it
	told        int64     // Requests when OnBoot was last called
	// elsewhere: cured, had a connection to another server perhaps, and has reported nothing
	// since. It may have started long ago and told that server.
	elsewhere bool
	excused   bool // its end is no failure: this server closed the connection, or the slave was told to restart
	announced bool // there is an event of its failure
}

// snapshot returns the boot as of now.
func (b *boot) snapshot() eboot.Boot {
	s := b.known
	for c := range b.carriers {
		c.mu.Lock()
		s.Requests += c.requests
		s.Bytes += c.bytes
		s.Latest = later(s.Latest, c.latestAt)
		c.mu.Unlock()
	}
	return s
}

// activity returns when b was last asked for something, and whether it is being
// answered now.
func (b *boot) activity() (latest time.Time, answering bool) {
	latest = b.known.Latest
	for c := range b.carriers {
		c.mu.Lock()
		latest = later(latest, c.latestAt)
		answering = answering || c.answering
		c.mu.Unlock()
	}
	return latest, answering
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// insert enters b, in the order in which boots began.
func (a *address) insert(b *boot) {
	i := len(a.boots)
	for i > 0 && a.boots[i-1].known.Began.After(b.known.Began) {
		i--
	}
	a.boots = slices.Insert(a.boots, i, b)
}

func (a *address) remove(b *boot) {
	a.boots = slices.DeleteFunc(a.boots, func(other *boot) bool { return other == b })
}

// latestBoot returns the stock boot of a that began last for erts, or nil. One of another
// server only when it is of the bundle that the address is pinned to.
func (f *Fleet) latestBoot(a *address, erts string) *boot {
	for _, b := range slices.Backward(a.boots) {
		if b.known.ERTS != erts || b.known.Cured != nil { // a cured one says whose connection it is
			continue
		}
		if f.ours(b) {
			return b
		}
		if pin, known := f.pins.get(pinKey{a.sighting.Slave, erts}); known && pin.Manifest == b.known.Manifest {
			return b
		}
	}
	return nil
}

// ours reports whether this server was the last to observe b.
func (f *Fleet) ours(b *boot) bool { return b.known.Server == f.options.Server }

// begin makes c the carrier of a new boot, and returns its pin.
func (f *Fleet) begin(c *Connection, channel string, bundle eboot.Bundle, rollout string) eboot.Pin {
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	began := now
	if asked, answering := c.restart(); answering {
		began = asked
	}
	f.enter(c, eboot.Boot{
		BootRecord: eboot.BootRecord{Rollout: rollout},
		Slave:      c.slave, ERTS: c.erts, Channel: channel, Bundle: bundle.Ref(), Manifest: bundle.Manifest,
		Loader: eboot.LoaderStock, Began: began, Latest: began,
	})
	f.again(c.boot)
	c.began = true
	f.begun++
	pin, err := f.pins.begin(eboot.Pin{Slave: c.slave, ERTS: c.erts, Manifest: bundle.Manifest, At: began})
	f.warnUnpinned(c, err)
	return pin
}

// enter makes c, which carries nothing, the carrier of a new boot.
func (f *Fleet) enter(c *Connection, known eboot.Boot) *boot {
	known.ID, known.Server = f.newID(), f.options.Server
	b := &boot{known: known, carriers: map[*Connection]struct{}{c: {}}}
	c.boot, c.former = b, nil
	f.addresses[c.slave].insert(b)
	f.byID[known.ID] = b
	f.carried[b] = struct{}{}
	f.load(b)
	return b
}

func (f *Fleet) newID() string {
	f.nextID++
	return f.options.Server + "-" + strconv.FormatUint(f.nextID, 36)
}

// load makes b one of the boots that are loading.
func (f *Fleet) load(b *boot) {
	b.known.Phase = eboot.BootLoading
	f.loading[b] = struct{}{}
	f.wakeRun()
	f.changed(b)
}

// changed tells everybody who wants to know of b, which is ours, as it is now.
func (f *Fleet) changed(b *boot) {
	b.known.Revision++
	if f.options.OnBoot != nil {
		s := b.snapshot()
		b.told = s.Requests
		f.options.OnBoot(s)
	}
	f.show(b)
}

// moveAtOnce is how many boots tellMoved looks at with the lock held.
const moveAtOnce = 500

// tellMoved tells OnBoot of the boots that asked for something since it was last told.
func (f *Fleet) tellMoved() {
	f.mu.Lock()
	carried := slices.AppendSeq(make([]*boot, 0, len(f.carried)), maps.Keys(f.carried))
	f.mu.Unlock()
	for batch := range slices.Chunk(carried, moveAtOnce) {
		f.tellMovedOf(batch)
	}
}

func (f *Fleet) tellMovedOf(boots []*boot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range boots {
		if _, still := f.carried[b]; !still {
			continue
		}
		s := b.snapshot()
		if s.Requests == b.told {
			continue
		}
		b.known.Revision++
		s.Revision, b.told = b.known.Revision, s.Requests
		f.options.OnBoot(s)
	}
}

func (f *Fleet) warnUnpinned(c *Connection, err error) {
	if err != nil { // the file could not be read back
		f.options.Logger.Warn("boot is not pinned", "slave", c.slave, "error", err)
	}
}

// restart ends what c carried and counted, but for the request that is being
// answered: the boot script that begins another boot. It returns when that was asked for.
func (c *Connection) restart() (asked time.Time, answering bool) {
	c.mu.Lock()
	var kept int64
	if c.answering {
		kept = 1
	}
	c.requests -= kept
	asked, answering = c.latestAt, c.answering
	c.mu.Unlock()
	c.fleet.release(c, false)
	c.mu.Lock()
	c.requests, c.bytes = kept, 0
	c.mu.Unlock()
	return asked, answering
}

// carry makes c, which counts for no boot yet, a carrier of b. It takes b over when another
// server was the last to observe it, and reopens it when it was closed.
func (f *Fleet) carry(c *Connection, b *boot) {
	c.boot, c.former = b, nil
	if b.carriers == nil {
		b.carriers = map[*Connection]struct{}{}
	}
	b.carriers[c] = struct{}{}
	if b.place == nil {
		return
	}
	f.finished.Remove(b.place)
	b.place = nil
	delete(f.gone, b)
	f.carried[b] = struct{}{}
	f.wakeRun()
	f.adopt(b)
	b.excused = false
	b.known.Failure, b.known.FailedAt, b.known.EndedAt = "", time.Time{}, time.Time{}
	switch {
	case b.known.Loaded.IsZero():
		f.load(b)
		return
	case b.known.Cured != nil:
		b.known.Phase = eboot.BootStarted
	default:
		b.known.Phase = eboot.BootQuiet
	}
	f.changed(b)
}

// release ends the carrying of c, and closes its boot when no other carries it. bySlave: the
// slave closed the connection.
func (f *Fleet) release(c *Connection, bySlave bool) {
	b := c.boot
	if b == nil {
		return
	}
	c.boot, c.began = nil, false
	delete(b.carriers, c)
	c.mu.Lock()
	b.known.Requests += c.requests
	b.known.Bytes += c.bytes
	b.known.Latest = later(b.known.Latest, c.latestAt)
	c.mu.Unlock()
	if len(b.carriers) > 0 {
		return
	}
	b.carriers = nil
	b.known.EndedAt = f.options.Now()
	f.watchGone(b, bySlave)
	if b.known.Phase != eboot.BootFailed {
		b.known.Phase = eboot.BootClosed
	}
	b.setControl(false)
	delete(f.loading, b)
	delete(f.carried, b)
	b.place = f.finished.PushFront(b)
	f.changed(b)
	f.dropFinished(f.addresses[c.slave])
}

// drop forgets b, which no connection carries, but for its place among those of its address.
func (f *Fleet) drop(b *boot) {
	f.finished.Remove(b.place)
	delete(f.byID, b.known.ID)
	delete(f.gone, b)
}

// dropFinished forgets the finished boots that are too many: those of a, which has one more
// now, and those of all.
func (f *Fleet) dropFinished(a *address) {
	excess := -f.options.FinishedEach
	for _, b := range a.boots {
		if b.place != nil {
			excess++
		}
	}
	if excess > 0 {
		a.boots = slices.DeleteFunc(a.boots, func(b *boot) bool {
			if b.place == nil || excess == 0 {
				return false
			}
			excess--
			f.drop(b)
			return true
		})
	}
	for spared := 0; f.finished.Len() > f.options.Finished; {
		place := f.finished.Back()
		oldest := place.Value.(*boot)
		owner := f.addresses[oldest.known.Slave]
		if oldest == owner.boots[len(owner.boots)-1] && spared < maxSpared { // nothing else would tell of this slave
			spared++
			f.finished.MoveToFront(place)
			continue
		}
		f.drop(oldest)
		owner.remove(oldest)
	}
}

// maxSpared bounds how many boots are looked at before one is forgotten.
const maxSpared = 32

// checkLoading finds the loading boots that became quiet, that are stuck, or that were and go
// on. It looks at no other.
func (f *Fleet) checkLoading() {
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := range f.loading {
		latest, answering := b.activity()
		if answering { // a big file on a slow link
			b.answeringAt = now
		}
		silent := now.Sub(later(latest, b.answeringAt))
		switch stuck := silent >= stuckAfter; {
		case b.known.Failure != "":
			if !stuck {
				b.goOn()
				f.changed(b)
			}
		case b.known.Cured != nil && !b.elsewhere: // it says itself when it has started
			if stuck {
				f.fail(b, now, stuckText)
			}
		case silent >= quietAfter:
			delete(f.loading, b)
			b.known.Phase = eboot.BootQuiet
			if b.known.Cured == nil {
				b.known.Loaded = latest
			}
			f.changed(b)
		}
	}
}
