package fsm

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"

	"eboot"
)

// transition is a successor being built by one command.
type transition struct {
	next    *State
	at      time.Time
	changed bool // something other than the answers changed
	boots   bool // what slaves may boot changed: the generation rises
	events  []eboot.Event
}

// perform builds the state that follows s when entry index is command c, and
// the answer to it. A refused command changes nothing but the answers.
func (s *State) perform(index uint64, c Command, print fingerprint) (*State, *Result) {
	next := s.successor(index)
	h := c.header()
	result := &Result{Index: index}
	t, err := s.build(index, c)
	switch {
	case err != nil:
		result.Err = newRefusal(err)
	default:
		next, result.Changed = t.next, t.changed
		if t.boots {
			next.generation++
		}
		next.record(h, t.events)
	}
	result.Generation = next.generation
	if h.check() == nil {
		next.remember(h.RequestID, print, result)
	}
	return next, result
}

func (s *State) build(index uint64, c Command) (*transition, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	h := c.header()
	if h.ExpectGeneration != nil && *h.ExpectGeneration != s.generation {
		return nil, fmt.Errorf("generation is %d, not %d as expected: somebody changed something meanwhile: %w", s.generation, *h.ExpectGeneration, eboot.ErrConflict)
	}
	t := &transition{next: s.successor(index), at: h.time()}
	return t, c.apply(t)
}

// remember appends an answer and forgets the oldest. Older states share the
// array and never see what stands behind their end, because states follow each
// other in one line: see Machine.New and ReadState, which clip.
func (s *State) remember(request string, print fingerprint, r *Result) {
	a := &answer{Request: request, Fingerprint: print, Index: r.Index, Generation: r.Generation, Changed: r.Changed}
	if refused, ok := r.Err.(*refusal); ok {
		a.Code, a.Text = refused.code, refused.text
	}
	if len(s.answers) == rememberedRequests {
		s.answers = s.answers[1:]
	}
	s.answers = append(s.answers, a)
}

func (c Init) apply(t *transition) error {
	if t.next.cluster == "" {
		t.next.cluster, t.next.name, t.changed = c.ClusterID, c.Name, true
	}
	return nil
}

func (c AllowSlaves) apply(t *transition) error {
	// The batch is a table of its own, merged at the end: nodes that several of
	// its entries touch are copied once.
	batch := new(bart.Table[*eboot.WhitelistEntry])
	shared := interner{}
	var news []*eboot.WhitelistEntry
	for i := range c.Entries {
		e := shared.entry(c.Entries[i])
		if twin, twice := batch.Get(e.Prefix); twice {
			if !sameEntry(twin, e) {
				return fmt.Errorf("prefix %s: given twice with different content: %w", e.Prefix, eboot.ErrInvalid)
			}
			continue
		}
		if old, ok := t.next.whitelist.Get(e.Prefix); ok && sameEntry(old, e) {
			e = old
		} else {
			news = append(news, e)
		}
		batch.Insert(e.Prefix, e)
	}
	if len(news) == 0 {
		return nil
	}
	t.changed, t.boots = true, true
	t.tell(allowed(news))
	t.next.whitelist = t.next.whitelist.UnionPersist(batch)
	if n := t.next.whitelist.Size(); n > MaxWhitelistEntries {
		return fmt.Errorf("whitelist: %d entries, at most %d: %w", n, MaxWhitelistEntries, eboot.ErrTooLarge)
	}
	return nil
}

// allowed tells of entries as one event: there may be thousands.
func allowed(entries []*eboot.WhitelistEntry) eboot.Event {
	first := entries[0]
	e := eboot.Event{Kind: eboot.EventSlavesAllowed, Text: fmt.Sprintf("%d prefixes are allowed, %s and others", len(entries), first.Prefix)}
	if len(entries) == 1 {
		e.Text, e.Prefix, e.Channel = fmt.Sprintf("%s is allowed, on channel %s", first.Prefix, first.Channel), first.Prefix, first.Channel
	}
	return e
}

func sameEntry(a, b *eboot.WhitelistEntry) bool {
	return a.Prefix == b.Prefix && a.Channel == b.Channel && maps.Equal(a.Labels, b.Labels)
}

func (c DenySlaves) apply(t *transition) error {
	denied := map[netip.Prefix]bool{}
	for _, p := range c.Prefixes {
		if denied[p] {
			continue
		}
		if _, ok := t.next.whitelist.Get(p); !ok {
			return fmt.Errorf("prefix %s: is not in the whitelist: %w", p, eboot.ErrNotFound)
		}
		t.next.whitelist = t.next.whitelist.DeletePersist(p)
		denied[p] = true
	}
	t.changed, t.boots = true, true
	e := eboot.Event{Kind: eboot.EventSlavesDenied, Text: fmt.Sprintf("%d prefixes are allowed no more, %s and others", len(denied), c.Prefixes[0])}
	if len(denied) == 1 {
		e.Text, e.Prefix = fmt.Sprintf("%s is allowed no more", c.Prefixes[0]), c.Prefixes[0]
	}
	t.tell(e)
	return nil
}

func (c AddBundle) apply(t *transition) error {
	b := c.Bundle
	b.PublishedAt, b.Protected = t.at, false
	b.Holders = slices.DeleteFunc(sortedHolders(b.Holders), t.next.Removed)
	b.Signatures = nil
	i, known := t.next.findBundle(b.Ref(), b.ERTS)
	switch {
	case !known && len(t.next.bundles) == MaxBundles:
		return fmt.Errorf("bundle %s: %d bundles are there already, which is the limit; remove some: %w", b.Ref(), MaxBundles, eboot.ErrTooLarge)
	case !known:
		t.next.bundles = slices.Insert(slices.Clone(t.next.bundles), i, b)
		t.changed = true
		t.tell(eboot.Event{Kind: eboot.EventBundlePublished, Text: fmt.Sprintf("bundle %s for ERTS %s is published", b.Ref(), b.ERTS), Bundle: b.Ref(), ERTS: b.ERTS})
	default:
		old := t.next.bundles[i]
		if err := sameBundle(old, b); err != nil {
			return err
		}
		holders := sortedHolders(append(slices.Clone(old.Holders), b.Holders...))
		if len(holders) > maxHolders {
			return fmt.Errorf("bundle %s: %d holders, at most %d: %w", b.Ref(), len(holders), maxHolders, eboot.ErrTooLarge)
		}
		if !slices.Equal(holders, old.Holders) {
			old.Holders = holders
			t.next.bundles = slices.Clone(t.next.bundles)
			t.next.bundles[i] = old
			t.changed = true
			if !c.By.IsZero() {
				t.tell(eboot.Event{Kind: eboot.EventBundlePublished, Text: fmt.Sprintf("bundle %s for ERTS %s is published again", b.Ref(), b.ERTS), Bundle: b.Ref(), ERTS: b.ERTS})
			}
		}
	}
	if err := t.sign(i, c.Bundle.Signatures); err != nil {
		return err
	}
	if c.Channel == "" {
		return nil
	}
	return t.move(c.Channel, b.ERTS, b.Ref())
}

func sameBundle(old, b eboot.Bundle) error {
	switch {
	case old.Manifest != b.Manifest:
		return fmt.Errorf("bundle %s for ERTS %s: exists with other content (%s, not %s); choose another version: %w",
			b.Ref(), b.ERTS, old.Manifest.Short(), b.Manifest.Short(), eboot.ErrConflict)
	case old.BootScript != b.BootScript:
		return fmt.Errorf("bundle %s for ERTS %s: exists with the boot script %q; choose another version: %w", b.Ref(), b.ERTS, old.BootScript, eboot.ErrConflict)
	case old.SysConfig != b.SysConfig:
		return fmt.Errorf("bundle %s for ERTS %s: exists with the sys.config %q; choose another version: %w", b.Ref(), b.ERTS, old.SysConfig, eboot.ErrConflict)
	}
	return nil
}

func (c RemoveBundle) apply(t *transition) error {
	found, err := t.target(c.Ref, c.ERTS)
	if err != nil {
		return err
	}
	for _, b := range found {
		if err := t.removable(b); err != nil {
			return err
		}
		var users []string
		for _, channel := range t.next.channels {
			if channel.Bundles[b.ERTS] == c.Ref {
				users = append(users, channel.Name)
			}
		}
		if len(users) > 0 {
			return fmt.Errorf("bundle %s for ERTS %s: channel %s points to it; set the channel to another bundle first: %w",
				c.Ref, b.ERTS, strings.Join(users, ", "), eboot.ErrConflict)
		}
		t.tell(eboot.Event{Kind: eboot.EventBundleRemoved, Text: fmt.Sprintf("bundle %s for ERTS %s is removed", c.Ref, b.ERTS), Bundle: c.Ref, ERTS: b.ERTS})
	}
	t.next.bundles = slices.DeleteFunc(slices.Clone(t.next.bundles), func(b eboot.Bundle) bool {
		return b.Ref() == c.Ref && (c.ERTS == "" || b.ERTS == c.ERTS)
	})
	t.changed = true
	return nil
}

func (c SetChannel) apply(t *transition) error {
	found, err := t.target(c.Ref, c.ERTS)
	if err != nil {
		return err
	}
	for _, b := range found {
		if err := t.move(c.Channel, b.ERTS, c.Ref); err != nil {
			return err
		}
	}
	return nil
}

// target returns the bundles that a reference names; ErrNotFound when there is none.
func (t *transition) target(ref eboot.Ref, erts string) ([]eboot.Bundle, error) {
	if erts == "" {
		if found := t.next.bundlesOf(ref); len(found) > 0 {
			return found, nil
		}
		return nil, fmt.Errorf("bundle %s: does not exist; `eboot bundle list` shows what does: %w", ref, eboot.ErrNotFound)
	}
	b, ok := t.next.Bundle(ref, erts)
	if !ok {
		return nil, fmt.Errorf("bundle %s for ERTS %s: does not exist: %w", ref, erts, eboot.ErrNotFound)
	}
	return []eboot.Bundle{b}, nil
}

// move points a channel to an existing bundle for one ERTS version. ErrConflict: a
// rollout of the channel is under way.
func (t *transition) move(channel, erts string, to eboot.Ref) error {
	if err := t.checkFree(channel); err != nil {
		return err
	}
	return t.point(channel, erts, to)
}

// point is move for those who know better; with the zero Ref the channel points to nothing.
func (t *transition) point(channel, erts string, to eboot.Ref) error {
	next, _, err := t.channel(channel)
	if err != nil {
		return err
	}
	from := next.Bundles[erts]
	if from == to {
		return nil
	}
	bundles := maps.Clone(next.Bundles)
	if to.IsZero() {
		delete(bundles, erts)
	} else {
		bundles[erts] = to
	}
	t.tell(eboot.Event{
		Kind: eboot.EventChannelMoved, Channel: channel, ERTS: erts, Bundle: to,
		Text: fmt.Sprintf("channel %s points to %s for ERTS %s, before to %s", channel, orNothing(to), erts, orNothing(from)),
	})
	next.Bundles = bundles
	next.History = append(slices.Clone(next.History), eboot.ChannelMove{Generation: t.next.generation + 1, At: t.at, ERTS: erts, From: from, To: to})
	if over := len(next.History) - eboot.ChannelHistoryLength; over > 0 {
		next.History = slices.Delete(next.History, 0, over)
	}
	t.replace(next)
	t.changed, t.boots = true, true
	return nil
}

func orNothing(ref eboot.Ref) string {
	if ref.IsZero() {
		return "nothing"
	}
	return ref.String()
}

// channel returns a channel to be changed, an empty one when it is not known. What it
// holds is shared with older states. ErrTooLarge: it would be one too many.
func (t *transition) channel(name string) (c eboot.Channel, known bool, err error) {
	i, known := t.next.findChannel(name)
	switch {
	case known:
		c = t.next.channels[i]
	case len(t.next.channels) == MaxChannels:
		return c, false, fmt.Errorf("channel %s: %d channels are there already, which is the limit: %w", name, MaxChannels, eboot.ErrTooLarge)
	default:
		c.Name = name
	}
	if c.Bundles == nil {
		c.Bundles = map[string]eboot.Ref{}
	}
	return c, known, nil
}

// replace enters a channel, in the place of the one of its name.
func (t *transition) replace(c eboot.Channel) {
	i, known := t.next.findChannel(c.Name)
	t.next.channels = slices.Clone(t.next.channels)
	if known {
		t.next.channels[i] = c
	} else {
		t.next.channels = slices.Insert(t.next.channels, i, c)
	}
}
