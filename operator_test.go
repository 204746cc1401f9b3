package eboot_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"eboot"
)

func TestRoles(t *testing.T) {
	roles := eboot.Roles()
	for i, r := range roles {
		for j, other := range roles {
			if r.Includes(other) != (i >= j) {
				t.Errorf("%s includes %s: %v", r, other, r.Includes(other))
			}
		}
		if got, err := eboot.ParseRole(string(r)); err != nil || got != r {
			t.Errorf("ParseRole(%q) = %v, %v", r, got, err)
		}
		if eboot.Role("").Includes(r) || r.Includes("") || eboot.Role("root").Includes(r) || r.Includes("root") {
			t.Errorf("%s and what is no role", r)
		}
	}
	if _, err := eboot.ParseRole("Admin"); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("ParseRole(Admin): %v", err)
	}
}

func TestToken(t *testing.T) {
	text := eboot.FormatToken([8]byte{1, 0xab}, [32]byte{31: 0xff})
	id, digest, err := eboot.ParseToken(text)
	if err != nil || id != "01ab000000000000" || digest != eboot.DigestOf([]byte(text)) {
		t.Fatalf("%q: %q %s %v", text, id, digest, err)
	}
	for _, wrong := range []string{"", "eboot_", text + "0", text[:len(text)-1], strings.ToUpper(text), " " + text, text + "\n", strings.Replace(text, "_", "-", 2), "eboot_01ab000000000000_" + strings.Repeat("g", 64)} {
		if _, _, err := eboot.ParseToken(wrong); !errors.Is(err, eboot.ErrInvalid) || len(wrong) > 40 && strings.Contains(err.Error(), wrong[24:40]) {
			t.Errorf("ParseToken(%q): %v", wrong, err)
		}
	}
	good := eboot.Token{ID: id, Name: "ci", Role: eboot.RolePublisher, Digest: digest}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*eboot.Token){
		"name": func(t *eboot.Token) { t.Name = "a b" }, "id": func(t *eboot.Token) { t.ID = "01AB000000000000" }, "role": func(t *eboot.Token) { t.Role = "root" },
		"digest": func(t *eboot.Token) { t.Digest = eboot.Digest{} }, "actor": func(t *eboot.Token) { t.CreatedBy = eboot.Actor{Name: "x", Via: "guess"} },
		"actor's name": func(t *eboot.Token) { t.CreatedBy = eboot.Actor{Name: "a\nb", Via: eboot.ViaToken} },
		"long address": func(t *eboot.Token) {
			t.CreatedBy = eboot.Actor{Name: "a", Via: eboot.ViaToken, From: strings.Repeat("1", 129)}
		},
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	now := time.Unix(1000, 0)
	if good.Expired(now) || (eboot.Token{ExpiresAt: now.Add(1)}).Expired(now) || !(eboot.Token{ExpiresAt: now}).Expired(now) {
		t.Error("expiry")
	}
}

func TestActor(t *testing.T) {
	for want, a := range map[string]eboot.Actor{
		"": {}, "ci (token) from 10.1.2.3": {Name: "ci", Via: eboot.ViaToken, From: "10.1.2.3"}, "uid 0 (socket)": {Name: "uid 0", Via: eboot.ViaSocket},
	} {
		if a.String() != want || a.Check() != nil || a.IsZero() != (want == "") {
			t.Errorf("%+v: %q, %v", a, a, a.Check())
		}
	}
}

func TestCheckTokenID(t *testing.T) {
	for id, ok := range map[string]bool{"0123456789abcdef": true, "": false, "0123456789abcde": false, "0123456789abcdef0": false, "0123456789ABCDEF": false, "0123456789abcde/": false} {
		if err := eboot.CheckTokenID(id); (err == nil) != ok || err != nil && !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
