package fleet

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"time"

	"eboot"
)

// boot is one boot of one slave. Guarded by Fleet.mu.
type boot struct {
	known    eboot.Boot // Latest, Requests and Bytes without those of the carriers
	carriers map[*Connection]struct{}
	place    *list.Element // in Fleet.finished; nil while there are carriers
	origin   time.Time     // cured: when the slave's loader started, by the clock of this server
	// elsewhere: cured, had a connection to another server perhaps, and has reported nothing
	// since. It may have started long ago and told that server.
	elsewhere bool
	// answeringAt is when checkQuiet last found a request being answered.
	answeringAt time.Time
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

// latestBoot returns the stock boot of a that began last for erts, or nil.
func (a *address) latestBoot(erts string) *boot {
	for _, b := range slices.Backward(a.boots) {
		if b.known.ERTS == erts && b.known.Cured == nil { // a cured one says whose connection it is
			return b
		}
	}
	return nil
}

// begin makes c the carrier of a new boot, and returns its pin.
func (f *Fleet) begin(c *Connection, channel string, bundle eboot.Bundle) eboot.Pin {
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	began := now
	if asked, answering := c.restart(); answering {
		began = asked
	}
	f.enter(c, eboot.Boot{
		Slave: c.slave, Server: f.options.Server, ERTS: c.erts, Channel: channel,
		Bundle: bundle.Ref(), Manifest: bundle.Manifest, Loader: eboot.LoaderStock,
		Phase: eboot.BootLoading, Began: began, Latest: began,
	})
	c.began = true
	f.begun++
	pin, err := f.pins.begin(eboot.Pin{Slave: c.slave, ERTS: c.erts, Manifest: bundle.Manifest, At: began})
	f.warnUnpinned(c, err)
	return pin
}

// enter makes c, which carries nothing, the carrier of a new boot.
func (f *Fleet) enter(c *Connection, known eboot.Boot) *boot {
	b := &boot{known: known, carriers: map[*Connection]struct{}{c: {}}}
	c.boot = b
	a := f.addresses[c.slave]
	a.boots = append(a.boots, b)
	f.load(b)
	return b
}

// load makes b one of the boots that are loading.
func (f *Fleet) load(b *boot) {
	b.known.Phase = eboot.BootLoading
	f.loading[b] = struct{}{}
	f.wakeRun()
	f.tell(b)
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
	c.fleet.release(c)
	c.mu.Lock()
	c.requests, c.bytes = kept, 0
	c.mu.Unlock()
	return asked, answering
}

// carry makes c, which counts for no boot yet, a carrier of b, and reopens b when it was closed.
func (f *Fleet) carry(c *Connection, b *boot) {
	c.boot = b
	b.carriers[c] = struct{}{}
	if b.place == nil {
		return
	}
	f.finished.Remove(b.place)
	b.place = nil
	switch {
	case b.known.Loaded.IsZero():
		f.load(b)
		return
	case b.known.Cured != nil:
		b.known.Phase = eboot.BootStarted
	default:
		b.known.Phase = eboot.BootQuiet
	}
	f.tell(b)
}

// release ends the carrying of c, and closes its boot when no other carries it.
func (f *Fleet) release(c *Connection) {
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
	b.known.Phase = eboot.BootClosed
	delete(f.loading, b)
	b.place = f.finished.PushFront(b)
	f.tell(b)
	f.dropFinished(f.addresses[c.slave])
}

// dropFinished forgets the finished boots that are too many: those of a, whose
// boot just finished, and those of all.
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
			f.finished.Remove(b.place)
			return true
		})
	}
	for f.finished.Len() > f.options.Finished {
		oldest := f.finished.Remove(f.finished.Back()).(*boot)
		owner := f.addresses[oldest.known.Slave]
		owner.boots = slices.DeleteFunc(owner.boots, func(b *boot) bool { return b == oldest })
	}
}

// checkQuiet finds the loading boots that became quiet. It looks at no other.
func (f *Fleet) checkQuiet() {
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := range f.loading {
		if b.known.Cured != nil && !b.elsewhere {
			continue // it says itself when it has started, and may ask for nothing until then
		}
		latest, answering := b.activity()
		if answering { // a big file on a slow link
			b.answeringAt = now
		}
		if now.Sub(later(latest, b.answeringAt)) < quietAfter {
			continue
		}
		delete(f.loading, b)
		b.known.Phase = eboot.BootQuiet
		if b.known.Cured == nil {
			b.known.Loaded = latest
		}
		f.tell(b)
	}
}

// Boots returns the boots that are remembered, newest first.
func (f *Fleet) Boots() []eboot.Boot {
	f.mu.Lock()
	defer f.mu.Unlock()
	var boots []eboot.Boot
	for _, a := range f.addresses {
		boots = a.appendBoots(boots)
	}
	return newestFirst(boots)
}

// BootsOf returns the boots of one slave that are remembered, newest first.
func (f *Fleet) BootsOf(slave netip.Addr) []eboot.Boot {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, known := f.addresses[slave.Unmap()]
	if !known {
		return nil
	}
	return newestFirst(a.appendBoots(nil))
}

func (a *address) appendBoots(boots []eboot.Boot) []eboot.Boot {
	for _, b := range a.boots {
		boots = append(boots, b.snapshot())
	}
	return boots
}

func newestFirst(boots []eboot.Boot) []eboot.Boot {
	slices.SortStableFunc(boots, func(a, b eboot.Boot) int {
		return cmp.Or(b.Began.Compare(a.Began), a.Slave.Compare(b.Slave))
	})
	return boots
}
