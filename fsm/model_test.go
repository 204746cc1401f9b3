package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"eboot"
)

// model is the state machine written naively: plain maps, changed in place, and a
// linear search for the longest prefix.
type model struct {
	generation uint64
	cluster    string
	whitelist  map[netip.Prefix]eboot.WhitelistEntry
	bundles    map[[3]string]eboot.Bundle
	channels   map[[2]string]eboot.Ref         // by name and ERTS version
	options    map[string]eboot.ChannelOptions // of every channel there is
	holders    map[[3]string]map[string]bool
	drained    map[string]bool
	removed    map[string]bool
	version    int

	history   map[string][]eboot.ChannelMove
	protected map[[3]string]bool
	rollouts  map[string]eboot.Rollout
	signed    map[[3]string]map[eboot.KeyID]eboot.Signature
	quiet     bool // the latest command has no event, though it may have changed something
	events    int
	audited   int // of them those that say by which request
	tokens    map[string]eboot.Token
}

func newModel() *model {
	return &model{
		whitelist: map[netip.Prefix]eboot.WhitelistEntry{}, bundles: map[[3]string]eboot.Bundle{}, channels: map[[2]string]eboot.Ref{},
		options: map[string]eboot.ChannelOptions{},
		holders: map[[3]string]map[string]bool{}, drained: map[string]bool{}, removed: map[string]bool{}, version: 1,
		history: map[string][]eboot.ChannelMove{}, protected: map[[3]string]bool{}, signed: map[[3]string]map[eboot.KeyID]eboot.Signature{}, rollouts: map[string]eboot.Rollout{},
		tokens: map[string]eboot.Token{},
	}
}

func (m *model) lookup(a netip.Addr) (eboot.WhitelistEntry, bool) {
	var best eboot.WhitelistEntry
	found := false
	for _, e := range m.whitelist {
		if e.Prefix.Contains(a) && (!found || e.Prefix.Bits() > best.Prefix.Bits()) {
			best, found = e, true
		}
	}
	return best, found
}

func (m *model) versions(ref eboot.Ref, erts string) []string {
	var found []string
	for key := range m.bundles {
		if key[0] == ref.Name && key[1] == ref.Version && (erts == "" || key[2] == erts) {
			found = append(found, key[2])
		}
	}
	return found
}

func (m *model) move(channel, erts string, ref eboot.Ref) bool {
	from := m.channels[[2]string{channel, erts}]
	moved := from != ref
	if moved {
		m.history[channel] = append(m.history[channel], eboot.ChannelMove{Generation: m.generation + 1, ERTS: erts, From: from, To: ref})
	}
	if m.channels[[2]string{channel, erts}] = ref; ref.IsZero() {
		delete(m.channels, [2]string{channel, erts})
	}
	if _, known := m.options[channel]; !known {
		m.options[channel] = eboot.ChannelOptions{}
	}
	return moved
}

func (m *model) hold(key [3]string, server string) bool {
	if m.removed[server] || m.holders[key][server] {
		return false
	}
	m.holders[key][server] = true
	return true
}

// apply returns what the machine must answer: changed, and the sentinel of the error.
func (m *model) apply(c Command) (bool, error) {
	if want := c.header().ExpectGeneration; want != nil && *want != m.generation {
		return false, eboot.ErrConflict
	}
	m.quiet = false
	changed, boots, err := m.change(c)
	if boots {
		m.generation++
	}
	if (changed || boots) && !m.quiet && m.version >= rolloutVersion {
		m.events++
		if m.version >= operatorsVersion {
			m.audited++
		}
	}
	return changed || boots, err
}

func (m *model) change(c Command) (changed, boots bool, err error) {
	switch c := c.(type) {
	case Init:
		m.quiet = true
		if m.cluster == "" {
			m.cluster, changed = c.ClusterID, true
		}
	case AllowSlaves:
		for i, e := range c.Entries {
			for _, other := range c.Entries[:i] {
				if other.Prefix == e.Prefix && (other.Channel != e.Channel || !maps.Equal(other.Labels, e.Labels)) {
					return false, false, eboot.ErrInvalid
				}
			}
		}
		for _, e := range c.Entries {
			old, ok := m.whitelist[e.Prefix]
			boots = boots || !ok || old.Channel != e.Channel || !maps.Equal(old.Labels, e.Labels)
			m.whitelist[e.Prefix] = e
		}
	case DenySlaves:
		for _, p := range c.Prefixes {
			if _, ok := m.whitelist[p]; !ok {
				return false, false, eboot.ErrNotFound
			}
		}
		for _, p := range c.Prefixes {
			delete(m.whitelist, p)
		}
		boots = true
	case AddBundle:
		key := [3]string{c.Bundle.Name, c.Bundle.Version, c.Bundle.ERTS}
		old, ok := m.bundles[key]
		if ok && old.Manifest != c.Bundle.Manifest {
			return false, false, eboot.ErrConflict
		}
		if c.Channel != "" && m.underWay(c.Channel) {
			return false, false, eboot.ErrConflict
		}
		if !ok {
			m.bundles[key], m.holders[key], changed = c.Bundle, map[string]bool{}, true
		}
		for _, server := range c.Bundle.Holders {
			changed = m.hold(key, server) || changed
		}
		signed := m.sign(key, c.Bundle.Signatures)
		changed = changed || signed
		if c.Channel != "" {
			boots = m.move(c.Channel, c.Bundle.ERTS, c.Bundle.Ref())
		}
		m.quiet = ok && !boots && !signed && c.By.IsZero()
	case RemoveBundle:
		found := m.versions(c.Ref, c.ERTS)
		if len(found) == 0 {
			return false, false, eboot.ErrNotFound
		}
		if m.needed(c.Ref, found) {
			return false, false, eboot.ErrConflict
		}
		for key, ref := range m.channels {
			if ref == c.Ref && slices.Contains(found, key[1]) {
				return false, false, eboot.ErrConflict
			}
		}
		for _, erts := range found {
			key := [3]string{c.Ref.Name, c.Ref.Version, erts}
			delete(m.bundles, key)
			delete(m.holders, key)
			delete(m.protected, key)
			delete(m.signed, key)
		}
		changed = true
	case SetChannel:
		found := m.versions(c.Ref, c.ERTS)
		if len(found) == 0 {
			return false, false, eboot.ErrNotFound
		}
		if m.underWay(c.Channel) {
			return false, false, eboot.ErrConflict
		}
		for _, erts := range found {
			boots = m.move(c.Channel, erts, c.Ref) || boots
		}
	case ConfigureChannel:
		if !c.Ref.IsZero() {
			if changed, boots, err = m.change(SetChannel{Channel: c.Channel, Ref: c.Ref, ERTS: c.ERTS}); err != nil {
				return false, false, err
			}
		}
		old, known := m.options[c.Channel]
		next := old
		switch c.Options.Loader {
		case "stock":
			next.Loader = "stock"
		case "eboot":
			next.Loader = ""
		}
		switch c.Options.Control {
		case "on":
			next.Control = "on"
		case "off":
			next.Control = ""
		}
		switch c.Options.Live {
		case "on":
			next.Live = "on"
		case "off":
			next.Live = ""
		}
		m.options[c.Channel] = next
		changed = changed || !known || next != old
		boots = boots || next.Loader != old.Loader || next.Live != old.Live
	case HoldBundle:
		m.quiet = true
		if m.removed[c.Server] {
			return false, false, eboot.ErrConflict
		}
		for key, b := range m.bundles {
			if slices.Contains(c.Manifests, b.Manifest) {
				changed = m.hold(key, c.Server) || changed
			}
		}
	case SetDrained:
		if m.removed[c.Server] {
			return false, false, eboot.ErrConflict
		}
		changed = m.drained[c.Server] != c.Drained
		m.drained[c.Server] = c.Drained
	case RemoveServer:
		changed = !m.removed[c.Server]
		m.removed[c.Server] = true
		delete(m.drained, c.Server)
		for _, holders := range m.holders {
			delete(holders, c.Server)
		}
	case RaiseVersion:
		if m.version < coverageVersion && c.Version >= coverageVersion {
			for channel, r := range m.rollouts {
				if m.underWay(channel) {
					r.Base = m.base(channel, r.Target)
					m.rollouts[channel] = r
				}
			}
		}
		changed = c.Version > m.version
		m.version = max(m.version, c.Version)
	case SignBundle:
		key := [3]string{c.Ref.Name, c.Ref.Version, c.ERTS}
		b, ok := m.bundles[key]
		if !ok {
			return false, false, eboot.ErrNotFound
		}
		if b.Manifest != c.Manifest {
			return false, false, eboot.ErrConflict
		}
		changed = m.sign(key, c.Signatures)
	case CreateToken, RevokeToken, Note:
		changed, err = m.changeTokens(c)
		return changed, false, err
	default:
		return m.changeRollouts(c)
	}
	return changed, boots, nil
}

func (m *model) sign(key [3]string, signatures []eboot.Signature) (changed bool) {
	for _, s := range signatures {
		if m.signed[key] == nil {
			m.signed[key] = map[eboot.KeyID]eboot.Signature{}
		}
		changed = changed || !m.signed[key][s.KeyID].Equal(s)
		m.signed[key][s.KeyID] = s
	}
	return changed
}

// drawSignatures has few keys, and two signatures of each.
func drawSignatures(t *rapid.T, least int) []eboot.Signature {
	keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]byte{1, 2, 3}), least, 3, rapid.ID).Draw(t, "keys")
	signatures := signaturesOf(keys...)
	for i := range signatures {
		signatures[i].Legacy = rapid.Bool().Draw(t, "legacy")
	}
	return signatures
}

var servers = []string{"server-a", "server-b", "server-c", "server-d"}

var (
	drawPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
		octet := rapid.SampledFrom([]byte{0, 1, 2, 127, 128, 255})
		a := netip.AddrFrom4([4]byte{10, octet.Draw(t, "b"), octet.Draw(t, "c"), octet.Draw(t, "d")})
		p, _ := a.Prefix(rapid.SampledFrom([]int{0, 7, 8, 15, 16, 17, 23, 24, 25, 31, 32}).Draw(t, "bits"))
		return p
	})
	drawEntry = rapid.Custom(func(t *rapid.T) eboot.WhitelistEntry {
		return eboot.WhitelistEntry{
			Prefix: drawPrefix.Draw(t, "prefix"), Channel: rapid.SampledFrom([]string{"stable", "canary"}).Draw(t, "channel"),
			Labels: rapid.SampledFrom([]map[string]string{nil, {}, {"rack": "r1"}, {"rack": "r1", "role": "db"}}).Draw(t, "labels"),
		}
	})
	drawRef     = rapid.Map(rapid.SampledFrom([]string{"otp@1", "otp@2", "app@1"}), refOf)
	drawERTS    = rapid.SampledFrom([]string{"13.1", "14.0"})
	drawAnyERTS = rapid.SampledFrom([]string{"", "13.1", "14.0"})
	drawChannel = rapid.SampledFrom([]string{"stable", "canary"})
	drawServer  = rapid.SampledFrom(servers)
	drawOptions = rapid.Custom(func(t *rapid.T) eboot.ChannelOptions {
		o := eboot.ChannelOptions{
			Loader: rapid.SampledFrom([]string{"", "eboot", "stock"}).Draw(t, "loader"), Control: rapid.SampledFrom([]string{"", "off", "on"}).Draw(t, "control"),
			Live: rapid.SampledFrom([]string{"", "", "off", "on"}).Draw(t, "live"),
		}
		if o == (eboot.ChannelOptions{}) {
			o.Loader = eboot.LoaderEboot
		}
		return o
	})
	drawContent = rapid.SampledFrom([]string{"one", "two"})
)

func drawCommand(t *rapid.T, h Header) Command {
	return drawOf(t, h, rapid.SampledFrom([]kind{
		kindInit, kindAllowSlaves, kindAllowSlaves, kindDenySlaves, kindAddBundle, kindAddBundle, kindRemoveBundle, kindSetChannel,
		kindHoldBundle, kindHoldBundle, kindSetDrained, kindRemoveServer, kindRaiseVersion, kindConfigure, kindConfigure, kindSetChannel, kindSetChannel,
		kindStartRollout, kindObserveRollout, kindSteerRollout, kindProtectBundle, kindUndoChannel, kindSignBundle, kindSignBundle,
		kindCreateToken, kindCreateToken, kindRevokeToken, kindNote,
	}).Draw(t, "kind"))
}

func drawOf(t *rapid.T, h Header, k kind) Command {
	if k.own() {
		h.By = eboot.Actor{}
	}
	switch k {
	case kindCreateToken, kindRevokeToken, kindNote:
		return drawTokenCommand(t, h, k)
	case kindStartRollout, kindObserveRollout, kindSteerRollout, kindProtectBundle, kindUndoChannel:
		return drawRolloutCommand(t, h, k)
	case kindInit:
		return Init{Header: h, ClusterID: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "cluster")}
	case kindAllowSlaves:
		return AllowSlaves{Header: h, Entries: rapid.SliceOfN(drawEntry, 1, 40).Draw(t, "entries")}
	case kindDenySlaves:
		return DenySlaves{Header: h, Prefixes: rapid.SliceOfN(drawPrefix, 1, 3).Draw(t, "prefixes")}
	case kindAddBundle:
		ref := drawRef.Draw(t, "ref")
		b := bundleOf(ref.Name, ref.Version, drawERTS.Draw(t, "erts"), drawContent.Draw(t, "content"))
		b.Holders = rapid.SliceOfN(drawServer, 0, 3).Draw(t, "holders")
		if rapid.IntRange(0, 3).Draw(t, "signed") == 0 {
			b.Signatures = drawSignatures(t, 1)
		}
		return AddBundle{Header: h, Bundle: b, Channel: rapid.SampledFrom([]string{"", "stable", "canary"}).Draw(t, "channel")}
	case kindSignBundle:
		return SignBundle{
			Header: h, Ref: drawRef.Draw(t, "ref"), ERTS: drawERTS.Draw(t, "erts"),
			Manifest: eboot.DigestOf([]byte(drawContent.Draw(t, "content"))), Signatures: drawSignatures(t, 1),
		}
	case kindRemoveBundle:
		return RemoveBundle{Header: h, Ref: drawRef.Draw(t, "ref"), ERTS: drawAnyERTS.Draw(t, "erts")}
	case kindHoldBundle:
		hold := HoldBundle{Header: h, Server: drawServer.Draw(t, "server")}
		for _, content := range rapid.SliceOfN(drawContent, 1, 3).Draw(t, "contents") {
			hold.Manifests = append(hold.Manifests, eboot.DigestOf([]byte(content)))
		}
		return hold
	case kindSetDrained:
		return SetDrained{Header: h, Server: drawServer.Draw(t, "server"), Drained: rapid.Bool().Draw(t, "drained")}
	case kindRemoveServer:
		return RemoveServer{Header: h, Server: drawServer.Draw(t, "server")}
	case kindRaiseVersion:
		return RaiseVersion{Header: h, Version: rapid.IntRange(1, Version).Draw(t, "version")}
	case kindConfigure:
		c := ConfigureChannel{Header: h, Channel: drawChannel.Draw(t, "channel"), Options: drawOptions.Draw(t, "options")}
		if rapid.Bool().Draw(t, "move") {
			c.Ref, c.ERTS = drawRef.Draw(t, "ref"), drawAnyERTS.Draw(t, "erts")
		}
		return c
	}
	return SetChannel{Header: h, Channel: drawChannel.Draw(t, "channel"), Ref: drawRef.Draw(t, "ref"), ERTS: drawAnyERTS.Draw(t, "erts")}
}

// TestModel runs random commands through two machines, one of which is replaced
// by its own snapshot now and then, and the model.
func TestModel(t *testing.T) { checkModel(t, nil, drawCommand) }

// TestModelOfRollouts has bundles to begin with, and few other commands.
func TestModelOfRollouts(t *testing.T) {
	var prepared []Command
	for i := range 4 {
		b := bundleOf("otp", fmt.Sprint(1+i%2), []string{"13.1", "14.0"}[i/2], fmt.Sprint(i))
		prepared = append(prepared, AddBundle{Header: Header{RequestID: fmt.Sprint("prepare", i)}, Bundle: b, Channel: []string{"stable", ""}[i%2]})
	}
	checkModel(t, append(prepared, RaiseVersion{Header: Header{RequestID: "raise"}, Version: Version}), func(t *rapid.T, h Header) Command {
		return drawOf(t, h, rapid.SampledFrom([]kind{
			kindSteerRollout, kindStartRollout, kindObserveRollout, kindUndoChannel, kindSetChannel, kindRemoveBundle, kindProtectBundle, kindAddBundle, kindConfigure,
		}).Draw(t, "kind"))
	})
}

// checkModel applies some commands and then what is drawn.
func checkModel(t *testing.T, prepared []Command, draw func(*rapid.T, Header) Command) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, naive := New(nil), New(nil), newModel()
		older := map[*State]eboot.Digest{}
		step := rapid.SampledFrom([]int64{1, keptExpired / 2}).Draw(t, "milliseconds")
		for i := range len(prepared) + rapid.IntRange(1, 30).Draw(t, "commands") {
			h := Header{RequestID: fmt.Sprint("r", i), At: int64(i) * step, By: drawActor.Draw(t, "by")}
			if rapid.IntRange(0, 4).Draw(t, "expect") == 0 {
				g := naive.generation + uint64(rapid.IntRange(0, 1).Draw(t, "wrong"))
				h.ExpectGeneration = &g
			}
			var c Command
			if i < len(prepared) {
				c = prepared[i]
			} else {
				c = draw(t, h)
			}
			entry, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			got := a.Apply(uint64(i+1), entry).(*Result)
			if other := b.Apply(uint64(i+1), entry).(*Result); other.Changed != got.Changed || other.Generation != got.Generation || (other.Err == nil) != (got.Err == nil) {
				t.Fatalf("two machines answer %+v and %+v", got, other)
			}
			events := naive.events
			changed, wrong := naive.apply(c)
			if got.Changed != changed || got.Generation != naive.generation || !errors.Is(got.Err, wrong) || (wrong == nil) != (got.Err == nil) {
				t.Fatalf("%+v: answer %+v, want changed %v, generation %d, error %v", c, got, changed, naive.generation, wrong)
			}
			compare(t, a.State(), naive)
			compareRollouts(t, a.State(), naive)
			compareTokens(t, a.State(), naive)
			checkEvents(t, a.State(), naive.events > events)
			checkAudit(t, a.State(), c.header(), got)
			older[a.State()] = eboot.DigestOf(rewrite(t, a.State()))
			if rapid.IntRange(0, 5).Draw(t, "snapshot") == 0 {
				if err := b.Restore(bytes.NewReader(rewrite(t, b.State()))); err != nil {
					t.Fatal(err)
				}
			}
			if a.State().Digest() != b.State().Digest() {
				t.Fatal("digests differ")
			}
		}
		for s, want := range older {
			fresh := s.successor(s.index) // without what the first reading has cached
			if eboot.DigestOf(rewrite(t, fresh)) != want {
				t.Fatalf("the state at %d changed after it was published", s.Index())
			}
		}
	})
}

func rewrite(t *rapid.T, s *State) []byte {
	var out bytes.Buffer
	if _, err := s.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compare(t *rapid.T, s *State, m *model) {
	if s.Cluster() != m.cluster || s.WhitelistSize() != len(m.whitelist) || len(s.Bundles()) != len(m.bundles) {
		t.Fatalf("cluster %q, %d entries, %d bundles; model %q, %d, %d", s.Cluster(), s.WhitelistSize(), len(s.Bundles()), m.cluster, len(m.whitelist), len(m.bundles))
	}
	var previous netip.Prefix
	for e := range s.Whitelist() {
		want, ok := m.whitelist[e.Prefix]
		if !ok || want.Channel != e.Channel || !maps.Equal(want.Labels, e.Labels) {
			t.Fatalf("entry %v, model %v", *e, want)
		}
		if previous.IsValid() && comparePrefixes(previous, e.Prefix) >= 0 {
			t.Fatalf("%s stands after %s", e.Prefix, previous)
		}
		previous = e.Prefix
		for _, a := range []netip.Addr{e.Prefix.Addr(), e.Prefix.Addr().Next(), e.Prefix.Addr().Prev()} {
			want, covered := m.lookup(a)
			if got, ok := s.Lookup(a); ok != covered || ok && got.Prefix != want.Prefix {
				t.Fatalf("lookup %s: %v %v, model %v %v", a, got, ok, want, covered)
			}
		}
	}
	for key, holders := range m.holders {
		b, ok := s.Bundle(eboot.Ref{Name: key[0], Version: key[1]}, key[2])
		if want := slices.Sorted(maps.Keys(holders)); !ok || !slices.Equal(b.Holders, want) {
			t.Fatalf("bundle %v is held by %v, model %v", key, b.Holders, want)
		}
		if len(b.Signatures) != len(m.signed[key]) || !slices.IsSortedFunc(b.Signatures, compareSignatures) {
			t.Fatalf("bundle %v is signed by %v, model %v", key, b.Signatures, m.signed[key])
		}
		for _, s := range b.Signatures {
			if !m.signed[key][s.KeyID].Equal(s) {
				t.Fatalf("bundle %v is signed by %v, model %v", key, s, m.signed[key])
			}
		}
	}
	var drained []string
	for _, server := range servers {
		if s.Drained(server) != m.drained[server] || s.Removed(server) != m.removed[server] {
			t.Fatalf("%s: drained %v, removed %v; model %v, %v", server, s.Drained(server), s.Removed(server), m.drained[server], m.removed[server])
		}
		if m.drained[server] {
			drained = append(drained, server)
		}
	}
	if !slices.Equal(s.DrainedServers(), drained) || s.Version() != m.version {
		t.Fatalf("drained %v, version %d; model %v, %d", s.DrainedServers(), s.Version(), drained, m.version)
	}
	pointers, minimum := 0, firstVersion
	for _, c := range s.Channels() {
		pointers += len(c.Bundles)
		want, known := m.options[c.Name]
		if !known || c.Options != want || s.ChannelOptions(c.Name) != want {
			t.Fatalf("channel %s has options %+v, model %v %+v", c.Name, c.Options, known, want)
		}
		if want != (eboot.ChannelOptions{}) {
			minimum = max(minimum, optionsVersion)
		}
		if want.Live != "" {
			minimum = rolloutVersion
		}
	}
	if m.events > 0 || len(m.rollouts) > 0 || len(m.protected) > 0 {
		minimum = rolloutVersion
	}
	if len(m.signed) > 0 {
		minimum = securityVersion
	}
	if len(m.tokens) > 0 || m.audited > 0 {
		minimum = operatorsVersion
	}
	if len(s.Channels()) != len(m.options) || s.MinimumVersion() != minimum {
		t.Fatalf("%d channels, minimum version %d; model %d, %d", len(s.Channels()), s.MinimumVersion(), len(m.options), minimum)
	}
	if pointers != len(m.channels) {
		t.Fatalf("channels point to %d bundles, model %d", pointers, len(m.channels))
	}
	for key, ref := range m.channels {
		b, ok := s.ChannelBundle(key[0], key[1])
		if !ok || b.Ref() != ref || b.Manifest != m.bundles[[3]string{ref.Name, ref.Version, key[1]}].Manifest {
			t.Fatalf("channel %v: %v %v, model %v", key, b, ok, ref)
		}
	}
}
