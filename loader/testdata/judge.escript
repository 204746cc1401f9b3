#!/usr/bin/env escript
%% judge.escript make DIRECTORY COUNT writes boot scripts of random terms of every type.
%% judge.escript check DIRECTORY says of each NAME.boot whether NAME.rewritten is what
%% Rewrite should have made of it (model/2), and NAME.text what Text should say.
%% judge.escript tree TREE FILES looks the files of a list up in an encoded tree.
-mode(compile).

main(["make", Directory, Count]) ->
    rand:seed(exsss, {1, 2, 3}),
    [make(filename:join(Directory, io_lib:format("random~3..0b.boot", [N])), N) || N <- lists:seq(1, list_to_integer(Count))];
main(["check", Directory]) ->
    {ok, Options} = file:consult(filename:join(Directory, "options")),
    [check(filename:rootname(F), Options) || F <- filelib:wildcard(filename:join(Directory, "*.boot"))];
main(["tree", Tree, Files]) ->
    {ok, Packed} = file:read_file(Tree),
    {ok, List} = file:consult(Files),
    Root = binary_to_term(Packed),
    Found = [Name || {Name, Size, Mtime} <- List, {f, Size, Mtime} =:= look(binary:split(Name, <<"/">>, [global]), Root)],
    io:format("~b files found~n", [length(Found)]).

look([Name | Names], {d, _, Entries}) -> look(Names, maps:get(Name, Entries));
look([], Entry) -> Entry.

%% Scripts of an even number have no term but those that have a text.
make(File, N) ->
    put(textual, N rem 2 =:= 0),
    Instructions = [{preLoaded, [erlang, init]}, {progress, preloaded}, {path, ["$LIB/a-1/ebin"]}] ++
        lists:append([instruction() || _ <- lists:seq(1, rand:uniform(12))]) ++
        [{primLoad, [lists, 'élan', '日本']}] ++ perhaps([{primLoad, [unicode]}]) ++
        perhaps([{kernel_load_completed}]) ++ [{progress, term(2)}, {apply, {m, f, term(3)}}] ++
        [{apply, {m, f, [lists:duplicate(70000, $a)]}} || N =:= 1] ++
        perhaps([{kernel_load_completed}]),
    Options = one([[], [compressed], [{minor_version, 0}], [{minor_version, 2}], [deterministic || later(24)]]),
    ok = file:write_file(File, term_to_binary({script, {"random", term(3)}, Instructions}, Options)).

later(Release) -> list_to_integer(erlang:system_info(otp_release)) > Release.

perhaps(X) -> case rand:uniform(2) of 1 -> X; 2 -> [] end.

instruction() ->
    one([[{progress, one([a, term(2)])}],
         [{path, lists:append([directory() || _ <- lists:seq(1, rand:uniform(4))])}],
         [{apply, {m, f, [term(4)]}}],
         [{kernelProcess, application_controller, {application_controller, start, [{application, kernel, term(4)}]}}],
         [{primLoad, [a, b]}], [{primLoad, term(2)}], [{path, term(2)}], [term(3)], []]).

directory() ->
    one([["$ROOT/lib/kernel-1/ebin"], ["$LIB/a-1/ebin"], ["$LIB/../releases/1/consolidated"], ['$LIB/a-1/ebin'],
         ["$OTHER/b/ebin"], ["$LIB"], ["/absolute"], ["$LIBRARY/none/ebin"], ["$LIB/日本"], [term(2)]]).

one(L) -> lists:nth(rand:uniform(length(L)), L).

term(0) ->
    Textual = [a, 'end', 'A b', 'it\'s', '', 'é', '日本', [], 0, -1, 255, 256, 1 bsl 27, -(1 bsl 31), 1 bsl 31, 1 bsl 64, -(1 bsl 2100),
               0.0, -1.5, 1.0e22, 1.0e-300, 123456789.125, "text", [0, 1], "\"\\\n\e", "é", "日本", [16#d800], [128], <<>>, <<"text">>,
               <<0, 255>>, <<5:3>>, <<1, 2, 3:7>>, list_to_atom(lists:duplicate(255, $l)), list_to_atom(lists:duplicate(255, 26085)),
               fun lists:map/2, #{}],
    case get(textual) of
        true -> one(Textual);
        false -> one([self(), make_ref(), hd(erlang:ports()), fun(X) -> {X, 1} end, fun later/1, binary:copy(<<"0123456789">>, 21) | Textual])
    end;
term(D) ->
    N = rand:uniform(4) - 1,
    case rand:uniform(9) of
        1 -> list_to_tuple(terms(N, D));
        2 -> terms(N, D);
        3 -> terms(N + 1, D) ++ term(D - 1);
        4 -> maps:from_list([{term(D - 1), term(D - 1)} || _ <- lists:seq(1, N)]);
        5 -> [{A, term(D - 1)} || A <- [description, vsn, env]];
        6 -> X = term(D - 1), case get(textual) of true -> {X}; false -> fun() -> X end end;
        7 -> list_to_tuple(lists:seq(1, 300));
        _ -> term(0)
    end.

terms(N, D) -> [term(D - 1) || _ <- lists:seq(1, N)].

check(Name, Options) ->
    {ok, Original} = file:read_file(Name ++ ".boot"),
    {ok, Rewritten} = file:read_file(Name ++ ".rewritten"),
    {script, Id, Instructions} = binary_to_term(Original),
    Expected = {script, Id, model(Instructions, Options)},
    case binary_to_term(Rewritten) of
        Expected -> ok;
        {script, _, Got} ->
            {script, _, Want} = Expected,
            [io:format("~ts: got ~tP~nwant ~tP~n", [Name, G, 30, W, 30]) || {G, W} <- zip(Got, Want), G =/= W]
    end,
    {ok, Text} = file:read_file(Name ++ ".text"),
    case parse(binary_to_list(Text)) of
        {ok, {script, Id, Instructions}} -> io:format("~ts read\n", [filename:basename(Name)]);
        {ok, Other} -> io:format("~ts: its text is ~tP~n", [Name, Other, 60]);
        {error, Error} -> io:format("~ts unread: ~tp\n", [filename:basename(Name), Error])
    end.

zip([A | As], [B | Bs]) -> [{A, B} | zip(As, Bs)];
zip(As, Bs) -> [{A, none} || A <- As] ++ [{none, B} || B <- Bs].

parse(Text) ->
    case erl_scan:string(Text) of
        {ok, Tokens, _} -> try erl_parse:parse_term(Tokens) catch _:Reason -> {error, Reason} end;
        {error, Error, _} -> {error, Error}
    end.

%% model is what Rewrite should make of a script, as plainly as it can be said.
model(Instructions, Options) ->
    {Head, Tail} = lists:splitwith(fun({preLoaded, _}) -> true; ({progress, _}) -> true; (_) -> false end, Instructions),
    Value = fun(Key) -> proplists:get_value(Key, Options) end,
    {ok, Code} = file:read_file(Value(beam)),
    Names = [name(D) || {path, Dirs} <- Instructions, length_or_none(Dirs) =/= none, D <- Dirs],
    Vars = [X || {V, _} = X <- Value(vars), lists:any(fun(N) -> variable(N) =:= V end, Names)],
    Known = [V || {V, _} <- Vars],
    Args = [{version, 1} | [{K, Value(K)} || K <- [digest, bundle, script]]] ++
        [{vars, [{list_to_binary(V), list_to_binary(D)} || {V, D} <- Vars]}, {config, Value(config)}],
    Started = [{apply, {erlang, load_module, [eboot_loader, Code]}}, {kernelProcess, eboot_loader, {eboot_loader, start, [Args]}}] ++
        [phase(lists:last(P)) || P <- [[X || {progress, X} <- Head]], P =/= []],
    Configured = [I || I <- configured(Tail), Value(config)],
    Head ++ Started ++ tail(Tail, Known, Configured).

phase(P) -> {apply, {eboot_loader, phase, [P]}}.

configured(Tail) ->
    {Before, _} = lists:splitwith(fun(I) -> I =/= {kernel_load_completed} end, Tail),
    Loaded = lists:append([L || {primLoad, L} <- Before, is_list(L), length_or_none(L) =/= none]),
    [{primLoad, [unicode]} || not lists:member(unicode, Loaded)] ++ [{apply, {eboot_loader, configure, []}}].

length_or_none(L) -> try length(L) catch error:badarg -> none end.

tail([{progress, P} = I | T], Known, Configured) -> [I, phase(P) | tail(T, Known, Configured)];
tail([{kernel_load_completed} = I | T], Known, Configured) -> Configured ++ [I | tail(T, Known, [])];
tail([{path, Dirs} | T], Known, Configured) when is_list(Dirs) ->
    New = case length_or_none(Dirs) of
              none -> Dirs;
              _ -> [marked(D, name(D), Known) || D <- Dirs]
          end,
    [{path, New} | tail(T, Known, Configured)];
tail([I | T], Known, Configured) -> [I | tail(T, Known, Configured)];
tail([], _, _) -> [].

name(D) when is_atom(D) -> atom_to_list(D);
name(D) -> D.

marked(D, [$$ | _] = Name, Known) ->
    case lists:member(variable(Name), Known) andalso io_lib:char_list(Name) of
        true -> "$ROOT/" ++ Name;
        false -> D
    end;
marked(D, _, _) -> D.

variable([$$ | Rest]) -> try lists:takewhile(fun(C) -> C =/= $/ end, Rest) catch error:_ -> none end;
variable(_) -> none.
