# The main job, by a client that is generated from the document which the daemon
# serves. Every answer is held against that document.
#
# client.pl URL SHOP PANEL: the daemon's address, and the tokens of an order system
# and of a panel that sees the VPS web1.
use strict;
use warnings;
use OpenAPI::Client;

my ($url, $shop_token, $panel_token) = @ARGV;
$SIG{__WARN__} = sub { die "a warning: $_[0]" };

sub client_with {
    my $token = shift;
    my $client = OpenAPI::Client->new("$url/openapi.yaml", base_url => $url);
    $client->ua->inactivity_timeout(120);
    $client->on(after_build_tx => sub { $_[1]->req->headers->authorization("Bearer $token") });
    return $client;
}
my ($shop, $panel) = (client_with($shop_token), client_with($panel_token));

# resolved is a part of the document without references: the validator does not
# follow those of headers.
sub resolved {
    my ($node, $document) = @_;
    return [map { resolved($_, $document) } @$node] if ref $node eq 'ARRAY';
    return $node if ref $node ne 'HASH';
    if (my $ref = $node->{'$ref'}) {
        my $target = $document;
        $target = $target->{$_} for split m{/}, $ref =~ s{^#/}{}r;
        return resolved($target, $document);
    }
    return {map { $_ => resolved($node->{$_}, $document) } keys %$node};
}
my $document = $shop->validator->data;
my $judge    = JSON::Validator->new->schema(resolved($document, $document))->schema;
my %calls;    # by operationId: method and path as in the document
$calls{$_->{operation_id}} = [@$_{qw(method path)}] for $judge->routes->each;

# call makes a call and wants an answer of this status, as documented.
sub call {
    my ($client, $want, $id, $params, $body) = @_;
    my $tx  = $client->$id($params, $body ? (json => $body) : ());
    my $res = $tx->res;
    my $got = $res->code // 0;
    die "$id: $got, want $want: " . $res->body . "\n" if $got != $want;
    my @errors = $judge->validate_response([@{$calls{$id}}, $got], {
        header => sub { my $v = $res->headers->header($_[0]); {exists => defined $v, value => $v} },
        body   => sub {
            my ($name, $content) = @_;
            my ($type) = split /;/, $res->headers->content_type // '';
            {exists => length $res->body, value => $res->json, content_type => $type};
        },
    });
    die "$id: the answer is not as documented: @errors\n" . $res->body . "\n" if @errors;
    return ($res->json, $res);
}

# refused makes a call that is answered with a problem of this code.
sub refused {
    my ($client, $want, $code, @call) = @_;
    my ($problem) = call($client, $want, @call);
    die "$call[0]: the code is $problem->{code}, want $code\n" if $problem->{code} ne $code;
    return $problem;
}

# ended waits for the operation that a call has begun, and wants it to succeed.
sub ended {
    my ($client, $id, $params, $body) = @_;
    my ($op, $res) = call($client, 202, $id, $params, $body);
    die "$id: the Location is " . $res->headers->location . "\n" if $res->headers->location ne "/v1/operations/$op->{id}";
    for (1 .. 6) {
        ($op) = call($client, 200, 'showOperation', {id => $op->{id}, wait => '20s'});
        last if $op->{status} !~ /^(pending|running)$/;
    }
    die "$id: the operation is $op->{status}\n" if $op->{status} ne 'succeeded';
    print "$id: $op->{result}\n";
    return $op;
}

my %web1 = (vps => 'web1');
my ($offers) = call($shop, 200, 'listOffers');
die "nothing is on sale\n" if !@{$offers->{offers}};

# The order system sells the option.
refused($panel, 402, 'option_required', takeSnapshot => {%web1});
my %order = (state => 'ordered', order_ref => 'A-1', price => {amount => 299, currency => 'EUR', period => 'month'});
call($shop, 200, 'putOption', {%web1}, {%order});
my ($option, $res) = call($shop, 200, 'putOption', {%web1}, {%order, state => 'active'});
die "the option is $option->{state}\n" if $option->{state} ne 'active';
refused($shop,  412, 'precondition_failed', putOption => {%web1, 'If-Match' => '"0000"'}, {%order, state => 'active'});
refused($panel, 403, 'forbidden', putOption => {%web1}, {%order});
refused($shop,  403, 'forbidden', takeSnapshot => {%web1});

# A customer takes, restores, takes that back, and deletes.
my $first = ended($panel, takeSnapshot => {%web1, 'Idempotency-Key' => 'one'}, {description => 'before the upgrade'});
my ($again) = call($panel, 202, 'takeSnapshot', {%web1, 'Idempotency-Key' => 'one'}, {description => 'before the upgrade'});
die "the repetition is another operation\n" if $again->{id} ne $first->{id};
refused($panel, 422, 'invalid', takeSnapshot => {%web1, 'Idempotency-Key' => 'one'}, {description => 'another'});
refused($panel, 409, 'snapshot_exists', takeSnapshot => {%web1});
my ($snapshot) = call($panel, 200, 'showSnapshot', {%web1});
call($panel, 200, 'describeSnapshot', {%web1}, {description => 'renamed'});
my ($list) = call($panel, 200, 'listVPS');
die "the list is not as it should be\n"
    if @{$list->{vps}} != 1 || $list->{vps}[0]{snapshot}{description} ne 'renamed' || !$list->{vps}[0]{actions}{restore}{allowed};
my $loss = refused($panel, 422, 'confirmation_required', restoreSnapshot => {%web1});
print "without confirmation: $loss->{detail}\n";
ended($panel, restoreSnapshot => {%web1}, {confirm => $snapshot->{id}, power_after => 'previous'});
ended($panel, undoRestore     => {%web1});
ended($panel, deleteSnapshot  => {%web1});
refused($panel, 404, 'not_found', showSnapshot => {%web1});
refused($panel, 404, 'not_found', showVPS => {vps => 'web2'});

# Both read what was done, page by page.
my ($read, $cursor, @texts) = (0);
do {
    my ($page) = call($panel, 200, 'listVPSMessages', {%web1, limit => 3, 'Accept-Language' => 'fr', $cursor ? (cursor => $cursor) : ()});
    push @texts, map { $_->{text} } @{$page->{messages}};
    $cursor = $page->{next};
} while ($cursor && $read++ < 20);
die "too few messages: @texts\n" if @texts < 8;
my ($operations) = call($panel, 200, 'listOperations', {vps => 'web1', status => 'succeeded'});
die "there were four operations\n" if @{$operations->{operations}} != 4;

# The option ends.
($option) = call($shop, 200, 'cancelOption', {%web1, now => 1});
die "the option is $option->{state}\n" if $option->{state} ne 'released';
my ($history) = call($shop, 200, 'listOptionHistory', {%web1});
die "the history lacks changes\n" if @{$history->{changes}} != 4;
call($shop, 200, $_) for qw(showHealth showReadiness);
refused(client_with('wrong'), 401, 'unauthenticated', 'listVPS');
print "all done\n";
