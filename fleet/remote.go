package fleet

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"eboot"
)

// takeOver is how much taking a boot over raises its revision: more than what the server that
// lost the slave, and does not know it yet, has to say about that.
const takeOver = 1 << 20

const (
	keepEvery   = time.Second     // a boot is kept against the claims of other servers
	regainAfter = 5 * time.Second // a stock slave that was taken for another's is taken back
	cutWithin   = 5 * time.Second // between the times of one boot, as two servers have them
	mergeAtOnce = 256             // boots, with the lock held
)

// MergeBoots takes in boots that other servers observed, and returns how many of them changed
// what is known here. A boot is known by its ID, one of a loader of ours by its number too; the
// greater revision stands, of equal ones that of the greater server. But a boot that a
// connection here carries, which asked for something later than that server knows of, is kept, and
// the others are told. What is no boot, and what there is no room for, is left out.
func (f *Fleet) MergeBoots(boots []eboot.Boot) (changed int) {
	for batch := range slices.Chunk(boots, mergeAtOnce) {
		changed += f.mergeSome(batch)
	}
	return changed
}

func (f *Fleet) mergeSome(boots []eboot.Boot) (changed int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, told := range boots {
		told.Slave = told.Slave.Unmap()
		if checkBoot(&told) == nil && f.merge(&told) {
			changed++
		}
	}
	return changed
}

func (f *Fleet) merge(told *eboot.Boot) bool {
	a := f.address(told.Slave)
	if a.list != nil {
		a.leave()
		a.enter(f.idle) // somebody serves it
	}
	b := f.byID[told.ID]
	if b == nil {
		b = a.twin(told)
	}
	if b == nil {
		b = &boot{known: f.names.boot(told)}
		a.insert(b)
		f.byID[b.known.ID] = b
		b.place = f.finished.PushFront(b)
		f.again(b)
		f.shown(b)
		f.dropFinished(a)
		return f.byID[b.known.ID] == b
	}
	if b.known.Slave != told.Slave || b.known.ERTS != told.ERTS {
		return false
	}
	if cmp.Or(cmp.Compare(told.Revision, b.known.Revision), cmp.Compare(told.Server, b.known.Server)) <= 0 ||
		len(b.carriers) > 0 && told.Revision == b.known.Revision {
		return false
	}
	if f.keep(b, told) {
		return true
	}
	for c := range b.carriers {
		f.deprive(c)
	}
	if b.place == nil {
		b.place = f.finished.PushFront(b)
	} else {
		f.finished.MoveToFront(b.place)
	}
	delete(f.gone, b)
	delete(f.byID, b.known.ID)
	a.remove(b)
	b.known = f.names.boot(told)
	a.insert(b)
	f.byID[b.known.ID] = b
	f.shown(b)
	return true
}

// twin returns the boot of a that told is under another ID: a server took it over before it
// had heard of it.
func (a *address) twin(told *eboot.Boot) *boot {
	var short *boot
	for _, b := range slices.Backward(a.boots) {
		if b.known.ERTS != told.ERTS || b.known.Manifest != told.Manifest {
			continue
		}
		switch have, cured := b.known.Cured, told.Cured; {
		case have != nil && cured != nil:
			if have.Number == cured.Number && cured.Number != 0 {
				return b
			}
		case short != nil:
		case have != nil && cutShort(told, &b.known), cured != nil && len(b.carriers) == 0 && cutShort(&b.known, told):
			short = b
		}
	}
	return short
}

// cutShort reports whether a boot lost its server when it had just got its script, and went on
// as later, which another server took over.
func cutShort(stock, later *eboot.Boot) bool {
	return later.Cured.TakenOver && beganOn(stock) != beganOn(later) && stock.Loaded.IsZero() &&
		stock.Began.Sub(later.Began).Abs() < cutWithin
}

// beganOn returns the server that gave b its ID.
func beganOn(b *eboot.Boot) string { return b.ID[:max(strings.LastIndexByte(b.ID, '-'), 0)] }

// shown tells followers of b as another server knows it. A boot that this server is said to be
// serving is one from before it was restarted: its connection is gone.
func (f *Fleet) shown(b *boot) {
	if f.ours(b) && b.known.EndedAt.IsZero() {
		b.known.EndedAt = f.options.Now()
		if b.known.Phase != eboot.BootFailed {
			b.known.Phase = eboot.BootClosed
		}
		b.setControl(false)
		f.changed(b)
		return
	}
	f.show(b)
}

// keep goes on with b, which another server claims, when a connection here carries it that
// asked for something later than told says. Not always: two slaves of one address may
// be taken for one.
func (f *Fleet) keep(b *boot, told *eboot.Boot) bool {
	now := f.options.Now()
	if len(b.carriers) == 0 || now.Sub(b.keptAt) < keepEvery {
		return false
	}
	if latest, _ := b.activity(); !latest.After(told.Latest) {
		return false
	}
	b.keptAt = now
	if b.known.ID != told.ID {
		delete(f.byID, b.known.ID)
		b.known.ID = strings.Clone(told.ID)
		f.byID[b.known.ID] = b
		b.setTakenOver()
	}
	b.known.Revision = told.Revision + takeOver
	f.changed(b)
	return true
}

// deprive ends the carrying of c: its boot goes on elsewhere, and what c counted is part of
// what the other server was told.
func (f *Fleet) deprive(c *Connection) {
	b := c.boot
	delete(b.carriers, c)
	if len(b.carriers) == 0 {
		b.carriers = nil
		delete(f.carried, b)
		delete(f.loading, b)
	}
	c.boot, c.began = nil, false
	c.former, c.since = b, f.options.Now()
	c.mu.Lock()
	c.requests, c.bytes, c.deprived = 0, 0, true
	c.mu.Unlock()
}

// regain has c, which shows that its slave is still there, carry the boot again that another
// server claimed: at once when the slave says which boot it is.
func (f *Fleet) regain(c *Connection) {
	b := c.former
	if b != nil && f.byID[b.known.ID] == b && c.boot == nil {
		if b.known.Cured == nil && f.options.Now().Sub(c.since) < regainAfter {
			return
		}
		f.carry(c, b)
	}
	c.former = nil
	c.mu.Lock()
	c.deprived = false
	c.mu.Unlock()
}

// adopt makes b ours, which another server was the last to observe.
func (f *Fleet) adopt(b *boot) {
	if f.ours(b) {
		return
	}
	b.known.Server = f.options.Server
	b.known.Revision += takeOver
	b.setTakenOver()
	// A server that died may have seen the end of a stock boot, and told nobody.
	if b.known.Cured == nil && b.known.Loaded.IsZero() && f.options.Now().Sub(b.known.Latest) > longQuiet {
		b.known.Loaded = b.known.Latest
	}
}

// longQuiet is longer than a stock loader waits for a server in mid-boot.
const longQuiet = 70 * time.Second

func (b *boot) setTakenOver() {
	if b.known.Cured != nil {
		cured := *b.known.Cured // who has a copy of the boot shares it
		cured.TakenOver = true
		b.known.Cured = &cured
	}
}

// LocalBoots returns the boots that this server was the last to observe, newest first.
func (f *Fleet) LocalBoots() []eboot.Boot { return f.boots(f.ours) }

// maxNames bounds how many texts are shared. More than that are none of ours.
const maxNames = 4096

// names are texts that many boots share.
type names map[string]string

// of returns s, which shares its memory with all others of the same text.
func (n names) of(s string) string {
	if known, ok := n[s]; ok {
		return known
	}
	if len(n) >= maxNames {
		clear(n)
	}
	s = strings.Clone(s)
	n[s] = s
	return s
}

// boot returns a copy of told that shares what it can with other boots and nothing with told.
func (n names) boot(told *eboot.Boot) eboot.Boot {
	b := *told
	b.ID, b.Failure, b.Lost = strings.Clone(b.ID), strings.Clone(b.Failure), 0
	b.Server, b.ERTS, b.Channel, b.Loader, b.Rollout = n.of(b.Server), n.of(b.ERTS), n.of(b.Channel), n.of(b.Loader), n.of(b.Rollout)
	b.Bundle = eboot.Ref{Name: n.of(b.Bundle.Name), Version: n.of(b.Bundle.Version)}
	b.Phase = eboot.BootPhase(n.of(string(b.Phase)))
	for _, at := range []*time.Time{&b.Began, &b.Latest, &b.Loaded, &b.FailedAt, &b.EndedAt} {
		*at = at.Round(0).UTC() // no monotonic reading, no time zone
	}
	if b.Cured != nil {
		cured := *b.Cured
		cured.Mode = n.of(cured.Mode)
		cured.Phases = slices.Clone(cured.Phases)
		for i := range cured.Phases {
			cured.Phases[i].Phase = n.of(word(cured.Phases[i].Phase, maxMark))
		}
		b.Cured = &cured
	}
	return b
}
